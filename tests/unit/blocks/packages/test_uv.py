"""What is asked of uv, and what its answers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from blocks.packages import uv, uv_messages
from tasks.core.errors import (
    CommandError,
    DiskFullError,
    MissingToolError,
    NetworkError,
    NotFoundError,
    SlipwayError,
)
from tasks.environment.models import Conflict, Locked, LockRequest, Refusal

NO_SOLUTION = "error: No solution found when resolving dependencies\n"
TWO_STEPS = (
    NO_SOLUTION
    + """\
  cause: Because gguf>=0.19.0 depends on numpy>=1.17 and you require gguf==0.19.0, we can conclude that you require numpy>=1.17.
         And because you require numpy<1.10, we can conclude that your requirements are unsatisfiable.
"""
)
REFUSED_CONNECTION = """\
error: Request failed after 3 retries in 6.0s
  cause: Failed to fetch: http://127.0.0.1:9/simple/numpy/
  cause: error sending request for url (http://127.0.0.1:9/simple/numpy/)
  cause: client error (Connect)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NOT_LET_IN = (
    NO_SOLUTION
    + """\
  cause: Because gguf was not found in the package registry and you require gguf==0.19.0, we can conclude that your requirements are unsatisfiable.

hint: An index (http://user:word@127.0.0.1:35999/simple) returned a 403 Forbidden error. Check that the index URL is correct and the credentials are valid.
"""
)
OFFLINE = (
    NO_SOLUTION
    + """\
  cause: Because numpy was not found in the cache and you require numpy, we can conclude that your requirements are unsatisfiable.

hint: Packages were unavailable because the network was disabled. When the network is disabled, registry packages may only be read from the cache.
"""
)


def asked_for(**changes: Any) -> LockRequest:
    return LockRequest(**{"requirements": ("a",), "python": "3.11", "platform": "linux-x86_64", **changes})


def locked(**changes: Any) -> Locked:
    return Locked(path=Path("/l.txt"), digest="sha256:1", packages={"a": "1"}, request=asked_for(**changes))


def test_commands() -> None:
    lines = [
        uv.compile_arguments(asked_for(), "requirements.in"),
        uv.compile_arguments(asked_for(python="3.12", exclude_newer="2026-01-01"), "requirements.in"),
        uv.compile_arguments(asked_for(torch_backend="cu126"), "requirements.in"),
        uv.compile_arguments(asked_for(wheels=Path("/wheels")), "requirements.in"),
        uv.venv_arguments(Path("/e.part"), "/usr/bin/python3.11"),
        uv.sync_arguments(Path("/e.part/bin/python"), locked()),
        uv.sync_arguments(Path("/e.part/bin/python"), locked(torch_backend="cu126"), offline=True),
        uv.sync_arguments(Path("/e.part/bin/python"), locked(wheels=Path("/wheels"))),
        uv.sync_arguments(Path("/e.part/bin/python"), locked(), refresh=("idna",)),
        uv.check_arguments(Path("/e/bin/python")),
    ]
    assert [" ".join(line) for line in lines] == snapshot(
        [
            "pip compile --quiet --color never --no-python-downloads --generate-hashes --no-emit-index-url --no-header --only-binary :all: --python-version 3.11 requirements.in",
            "pip compile --quiet --color never --no-python-downloads --generate-hashes --no-emit-index-url --no-header --only-binary :all: --python-version 3.12 --exclude-newer 2026-01-01 requirements.in",
            "pip compile --quiet --color never --no-python-downloads --generate-hashes --no-emit-index-url --no-header --only-binary :all: --python-version 3.11 --torch-backend cu126 requirements.in",
            "pip compile --quiet --color never --no-python-downloads --generate-hashes --no-emit-index-url --no-header --only-binary :all: --python-version 3.11 --no-index --find-links /wheels requirements.in",
            "venv --quiet --color never --no-project --no-python-downloads --relocatable --python /usr/bin/python3.11 /e.part",
            "pip sync --quiet --color never --no-python-downloads --link-mode copy --require-hashes --only-binary :all: --python /e.part/bin/python /l.txt",
            "--offline pip sync --quiet --color never --no-python-downloads --link-mode copy --require-hashes --only-binary :all: --torch-backend cu126 --python /e.part/bin/python /l.txt",
            "pip sync --quiet --color never --no-python-downloads --link-mode copy --require-hashes --only-binary :all: --no-index --find-links /wheels --python /e.part/bin/python /l.txt",
            "pip sync --quiet --color never --no-python-downloads --link-mode copy --refresh-package idna --reinstall-package idna --require-hashes --only-binary :all: --python /e.part/bin/python /l.txt",
            "pip check --color never --no-python-downloads --python /e/bin/python",
        ]
    )


def test_a_refusal_says_who_asks_for_what() -> None:
    assert uv_messages.refusal(TWO_STEPS, 1) == snapshot(
        Refusal(
            reason="Because gguf>=0.19.0 depends on numpy>=1.17 and you require gguf==0.19.0, we can conclude that you require numpy>=1.17. And because you require numpy<1.10, we can conclude that your requirements are unsatisfiable.",
            conflicts=(
                Conflict(package="numpy", required_by="gguf>=0.19.0", requirement="numpy>=1.17"),
                Conflict(package="gguf", requirement="gguf==0.19.0"),
                Conflict(package="numpy", requirement="numpy<1.10"),
            ),
        )
    )


@pytest.mark.parametrize(
    ("cause", "asked"),
    [
        ("you require numpy>=2,<3 and numpy<1.20, we can conclude that", snapshot([(None, 'numpy>=2,<3'), (None, 'numpy<1.20')])),
        ("nowhere was not found in the package registry and you require nowhere, we can conclude", snapshot([(None, 'nowhere')])),
        ("a[fast]==1 depends on b~=2.0 and b>=3 depends on c!=1, we can conclude that a depends on c", snapshot([('a[fast]==1', 'b~=2.0'), ('b>=3', 'c!=1')])),
    ],
)  # fmt: skip
def test_demands(cause: str, asked: list[tuple[str | None, str | None]]) -> None:
    found = uv_messages.demands(f"  cause: Because {cause} your requirements are unsatisfiable.")
    assert [(one.required_by, one.requirement) for one in found] == asked


def test_hints_stay_with_the_reason() -> None:
    said = uv_messages.refusal(TWO_STEPS + "\nhint: `gguf` was filtered by `exclude-newer`.\n", 1)
    assert said is not None
    assert said.reason.endswith("unsatisfiable. Hint: `gguf` was filtered by `exclude-newer`.")


@pytest.mark.parametrize("text", [REFUSED_CONNECTION, NOT_LET_IN, OFFLINE])
def test_no_network_is_no_conflict(text: str) -> None:
    assert uv_messages.refusal(text, 2 if text == REFUSED_CONNECTION else 1) is None
    error = uv_messages.fault("locking the environment", text, 1)
    assert isinstance(error, NetworkError)
    assert error.retryable
    assert "word" not in error.what
    assert "\n" not in str(error)


def test_an_unreachable_index_is_told_in_one_line() -> None:
    assert str(uv_messages.fault("locking the environment", REFUSED_CONNECTION, 2)) == snapshot(
        "cannot reach the package index 127.0.0.1:9 while locking the environment: Connection refused (os error 111) (check the network and UV_DEFAULT_INDEX, or use an existing lock and uv's cache)"
    )
    assert str(uv_messages.fault("locking the environment", NOT_LET_IN, 1)) == snapshot(
        "cannot reach the package index 127.0.0.1:35999 while locking the environment: An index (http://***@127.0.0.1:35999/simple) returned a 403 Forbidden error. Check that the index URL is correct and the credentials are valid. (check the network and UV_DEFAULT_INDEX, or use an existing lock and uv's cache)"
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("error: failed to write\n  cause: No space left on device (os error 28)", DiskFullError),
        ("error: Failed to download `a==1`\n  cause: Hash mismatch for `a==1`", SlipwayError),
        ("error: invalid value 'x' for '--exclude-newer'", CommandError),
        ("", CommandError),
    ],
)
def test_other_faults_keep_their_kind(text: str, kind: type[SlipwayError]) -> None:
    assert uv_messages.refusal(text, 2) is None
    assert type(uv_messages.fault("installing", text, 2)) is kind


def test_complaints_are_read_as_data() -> None:
    output = """\
Checked 8 packages in 0.32ms
Found 4 incompatibilities
The package `requests` requires `urllib3>=1.26,<3`, but `1.20` is installed
The package `requests` requires `certifi>=2023.5.7`, but it's not installed
The package `gguf` requires Python >=3.14, but `3.11.7` is installed
The package `six` has multiple installed distributions:
"""
    assert uv_messages.complaints(output) == snapshot(
        (
            Conflict(
                package="urllib3", required_by="requests", requirement="urllib3>=1.26,<3", installed="1.20"
            ),
            Conflict(package="certifi", required_by="requests", requirement="certifi>=2023.5.7"),
            Conflict(package="gguf", reason="gguf requires Python >=3.14, but 3.11.7 is installed"),
            Conflict(package="six", reason="six has multiple installed distributions:"),
        )
    )


@given(st.text(alphabet=st.sampled_from("ab`<>=! ,.\n[]:") | st.characters(), max_size=200))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    said = uv_messages.refusal(NO_SOLUTION + text, 1)
    assert said is None or said.reason
    assert isinstance(uv_messages.fault("x", text, 2), SlipwayError)
    for line in (text, f"The package `{text}` requires `{text}`, but `{text}` is installed"):
        assert all(isinstance(one, Conflict) for one in uv_messages.complaints(line))


names = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
asked = st.builds("{}{}{}".format, names, st.sampled_from(["==", ">=", "<"]), st.integers(0, 99))


@given(st.lists(st.tuples(asked, asked), max_size=4, unique=True), st.lists(asked, max_size=2, unique=True))
def test_each_demand_in_an_explanation_is_found(pairs: list[tuple[str, str]], own: list[str]) -> None:
    clauses = [f"{by} depends on {what}" for by, what in pairs]
    clauses += [f"you require {' and '.join(own)}"] if own else []
    found = uv_messages.demands(f"Because {' and '.join(clauses)}, we can conclude that x depends on y.")
    expected = [(by, what) for by, what in pairs] + [(None, what) for what in own]
    assert [(one.required_by, one.requirement) for one in found] == list(dict.fromkeys(expected))


def test_a_python_that_is_missing_is_named_with_those_that_are_there() -> None:
    with pytest.raises(MissingToolError) as caught:
        uv.Uv().find_python("3.99")
    assert caught.value.what == "Python 3.99 is not installed on this machine"
    assert caught.value.fix is not None
    assert "uv python install 3.99" in caught.value.fix
    assert "3.1" in caught.value.fix.partition("one of")[2]


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_wheels_are_in_a_folder_or_uv_is_not_asked(kind: str, tmp_path: Path) -> None:
    """uv reads a file of links whole: one of 100 GB takes all memory of the host."""
    wheels = tmp_path / "wheels"
    if kind == "a file":
        with wheels.open("wb") as file:
            file.truncate(10**11)
    for ask in (
        lambda: uv.Uv().resolve(asked_for(wheels=wheels), tmp_path),
        lambda: uv.Uv().install(locked(wheels=wheels), tmp_path / "new", tmp_path / "final"),
    ):
        with pytest.raises(NotFoundError, match="wheels is not a folder of wheels"):
            ask()
    assert not (tmp_path / "new").exists()
