"""Exact versions as requirements and locks name them."""

from __future__ import annotations

from tasks.core.pins import pinned_versions


def test_only_exact_versions_are_read() -> None:
    text = (
        "# made by hand\nFlash_Attn[cuda]==2.8.3 ; python_version > '3'\nnumpy>=2,<3\n"
        "  torch==2.13.0 \\\n    --hash=sha256:00\n    # via numpy==1\n"
    )
    assert pinned_versions(text) == {"flash-attn": "2.8.3", "torch": "2.13.0"}
