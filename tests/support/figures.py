"""Figures of artifacts in tests: what is drawn, or the text without them."""

from __future__ import annotations

import re
from base64 import b64decode

_DATA = re.compile(r"data:image/svg\+xml;base64,([^)]*)")


def svg_of(markdown: str) -> str:
    """The first figure's SVG."""
    match = _DATA.search(markdown)
    assert match is not None, "the text holds no figure"
    return b64decode(match[1]).decode()


def without_figures(markdown: str) -> str:
    """The text, each figure's data replaced by `…`."""
    return _DATA.sub("data:image/svg+xml;base64,…", markdown)
