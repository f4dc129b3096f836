"""What names a lock, and how locks are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import SpecError, WrongUseError
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Environment
from tasks.engines.catalogue import get_engine
from tasks.environment import locks, plan
from tasks.environment.models import EnvironmentRequest, LockRequest

PLATFORM = "linux-x86_64"
HASH = "--hash=sha256:" + "0" * 64

names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?", fullmatch=True)
versions = st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,2})?", fullmatch=True)


class ThisMachine:
    """A machine that has every library but those it is told to lack."""

    platform = PLATFORM

    def __init__(self, *lacking: str) -> None:
        self._lacking = lacking

    def lacks(self, soname: str) -> bool:
        return soname in self._lacking


def request_for(*requirements: str, **changes: Any) -> LockRequest:
    return plan.make_lock_request(requirements, PLATFORM, Environment(**{"python": "3.11", **changes}))


def test_the_engine_and_the_spec_are_locked_together() -> None:
    environment = Environment(requirements=("tqdm>4",), exclude_newer="2026-10-20")
    request = EnvironmentRequest.of(
        DeploySpec(name="x", model="file:/m", engine=EngineKind.LLAMA_CPP, environment=environment)
    )
    asked = plan.lock_request(get_engine(request.engine), request, ThisMachine())
    assert asked == snapshot(
        LockRequest(
            requirements=("gguf==0.19.0", "numpy<3,>=2", "tqdm>4", "xllamacpp==2026.10.11549"),
            python="3.11",
            platform="linux-x86_64",
            exclude_newer="2026-10-20",
        )
    )


def test_another_release_of_the_engine_is_another_lock() -> None:
    def asked(version: str | None) -> LockRequest:
        request = EnvironmentRequest(engine=EngineKind.LLAMA_CPP, engine_version=version)
        return plan.lock_request(get_engine(request.engine), request, ThisMachine())

    assert asked("2026.9.11063").requirements == ("gguf==0.19.0", "numpy<3,>=2", "xllamacpp==2026.9.11063")
    assert asked("2026.9.11063").digest != asked(None).digest
    assert asked("2026.10.11549").digest == asked(None).digest, "the pin itself is no other release"
    own = plan.own_requirements(get_engine(EngineKind.LLAMA_CPP), "2026.9.11063")
    assert "xllamacpp==2026.9.11063" in own


def test_what_the_machine_lacks_is_locked_too() -> None:
    request = EnvironmentRequest()
    engine = get_engine(request.engine)
    bare = plan.lock_request(engine, request, ThisMachine("libgomp.so.1", "libstdc++.so.6"))
    assert "pykdtree==1.4.3" in bare.requirements
    assert [library.soname for library in bare.libraries] == ["libgomp.so.1"]  # no wheel brings the other
    assert bare.digest != plan.lock_request(engine, request, ThisMachine()).digest
    text = locks.render_lock(bare, f"pykdtree==1.4.3 {HASH}\n")
    assert locks.read_lock(text, "a lock").request == bare


@given(st.lists(st.builds("{}=={}".format, names, versions), min_size=1, max_size=6), st.randoms())
def test_order_case_and_spaces_do_not_change_the_name(lines: list[str], random: object) -> None:
    respelled = [line.replace("==", "  == ").replace("-", "_").upper() for line in lines]
    random.shuffle(respelled)  # type: ignore[attr-defined]
    assert request_for(*lines).digest == request_for(*respelled).digest


def test_everything_that_decides_the_pins_is_in_the_name() -> None:
    asked = [
        request_for("a"),
        request_for("a", "b"),
        request_for("a", python="3.12"),
        request_for("a", exclude_newer="2026-01-01"),
        plan.make_lock_request(["a"], "linux-aarch64", Environment(python="3.11")),
        request_for("a", torch_backend="cu126"),
        request_for("a", wheels=Path("/wheels")),
        request_for("a", manager="conda", channels=("https://host/one",)),
        request_for("a", manager="conda", channels=("https://host/two",)),
    ]
    assert len({one.digest for one in asked}) == len(asked)


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("numpy >> 2", snapshot("'numpy >> 2' is not a requirement: Expected semicolon (after name with no version specifier) or end (write it as PEP 508 says, for example numpy>=2,<3)")),
        ("-r other.txt", snapshot("'-r other.txt' is an option of pip, not a requirement (copy the lines of that file into this one)")),
        ("--extra-index-url https://download.pytorch.org/whl/cu128", snapshot("'--extra-index-url https://download.pytorch.org/whl/cu128' is an option of pip, not a requirement (remove the line, and name torch's build instead: --torch-backend cu128)")),
        ("-e .", snapshot("'-e .' is an option of pip, not a requirement (build a wheel of it (`pip wheel`), and give its folder: --wheels FOLDER)")),
        ("https://host/x.whl", snapshot("'https://host/x.whl' is not a requirement: Expected semicolon (after name with no version specifier) or end (write it as PEP 508 says, for example numpy>=2,<3)")),
        ("x @ https://user:secret@host/x.whl", snapshot('the address of x contains credentials (put them into a netrc file instead)')),
    ],
)  # fmt: skip
def test_what_is_no_requirement_is_refused_before_anything_runs(requirement: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        request_for("numpy", requirement)
    assert str(caught.value) == said
    assert "secret" not in str(caught.value)


def test_a_request_for_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="there are no requirements to lock"):
        request_for()


def test_a_requirements_file_is_read_line_by_line() -> None:
    text = "# the engine\nnumpy >=2,<3  # arrays\n\nGGUF==0.19.0\nx @ https://host/x-1-py3-none-any.whl#sha\n"
    assert plan.parse_requirements(text, "in.txt") == snapshot(
        ("numpy<3,>=2", "gguf==0.19.0", "x @ https://host/x-1-py3-none-any.whl#sha")
    )


def test_a_wrong_line_of_a_file_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        plan.parse_requirements("numpy\n\nnot a requirement\n", "in.txt")
    assert str(caught.value) == snapshot(
        "in.txt, line 3: 'not a requirement' is not a requirement: Expected semicolon (after name with no version specifier) or end (write it as PEP 508 says, for example numpy>=2,<3)"
    )


@given(st.dictionaries(names, versions, min_size=1), st.booleans())
def test_a_lock_reads_back_as_it_was_written(packages: dict[str, str], dated: bool) -> None:
    asked = request_for(*packages, **({"exclude_newer": "2026-01-01"} if dated else {}))
    resolved = "".join(
        f"{name}=={version} \\\n    {HASH} \\\n    {HASH}\n    # via -r requirements.in\n"
        for name, version in packages.items()
    )
    content = locks.read_lock(locks.render_lock(asked, resolved), "a lock")
    assert content.request == asked
    assert content.packages == packages


def test_a_foreign_lock_has_no_request_and_may_pin_addresses() -> None:
    text = (
        f"a==1.0 ; python_version > '3' \\\n  {HASH}\n"
        f"Big_Name @ https://host/big_name-2.1-py3-none-any.whl {HASH}\n"
    )
    content = locks.read_lock(text, "a lock")
    assert content.request is None
    assert content.packages == {"a": "1.0", "big-name": "2.1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "numpy>=2\n",
            snapshot(
                "F is not a hash lock: 'numpy>=2' is not pinned with a hash (make one: slipway env lock)"
            ),
        ),
        (
            "numpy==2.0\n",
            snapshot(
                "F is not a hash lock: 'numpy==2.0' is not pinned with a hash (make one: slipway env lock)"
            ),
        ),
        (
            f"numpy>=2 {HASH}\n",
            snapshot(
                "F is not a hash lock: 'numpy>=2' is not pinned with a hash (make one: slipway env lock)"
            ),
        ),
        (
            f"numpy==2.* {HASH}\n",
            snapshot(
                "F is not a hash lock: 'numpy==2.*' is not pinned with a hash (make one: slipway env lock)"
            ),
        ),
        (
            f"x @ https://host/x.tar.gz {HASH}\n",
            snapshot(
                "F is not a hash lock: 'x @ https://host/x.tar.gz' is not pinned with a hash (make one: slipway env lock)"
            ),
        ),
        (
            "<html>\n",
            snapshot("F is not a hash lock: '<html>' is not pinned with a hash (make one: slipway env lock)"),
        ),
        ("# nothing\n", snapshot("F pins no packages (make a lock: slipway env lock)")),
        ("# slipway-lock: {\n", snapshot("F: its first line is damaged (make the lock again)")),
    ],
)
def test_what_is_no_hash_lock_is_refused(text: str, said: str) -> None:
    with pytest.raises(WrongUseError) as caught:
        locks.read_lock(text, "F")
    assert str(caught.value) == said


def test_conda_asks_in_its_own_words() -> None:
    environment = Environment(
        manager="conda", python="3.11", channels=("https://host/c",), requirements=("pytorch  >=2.6 cuda12*",)
    )
    request = EnvironmentRequest(environment=environment)
    asked = plan.lock_request(get_engine(request.engine), request, ThisMachine("libgomp.so.1"))
    assert asked.requirements == snapshot(
        (
            "gguf ==0.19.0",
            "numpy <3,>=2",
            "python 3.11.*",
            "pytorch >=2.6 cuda12*",
            "xllamacpp ==2026.10.11549",
        )
    )
    assert asked.libraries == ()  # a channel brings its own


CONDA_LOCK = """version: 7
packages:
- conda: https://host/c/linux-64/numpy-2.3.1-py311h1_0.conda
  sha256: 00ff
- conda: https://host/c/noarch/tz-data-2026a-h2_1.tar.bz2
  sha256: 11ee
"""


def test_a_lock_of_conda_packages_reads_back() -> None:
    asked = request_for("numpy >=2", manager="conda", channels=("https://host/c",))
    content = locks.read_lock(locks.render_lock(asked, CONDA_LOCK), "a lock")
    assert content.request == asked
    assert content.packages == {"numpy": "2.3.1", "tz-data": "2026a"}
    assert [pin.hashes for pin in content.pins] == [("sha256:00ff",), ("sha256:11ee",)]


@pytest.mark.parametrize("damage", ["sha256: 00ff", "numpy-2.3.1-py311h1_0.conda", "packages:"])
def test_a_damaged_lock_of_conda_packages_is_refused(damage: str) -> None:
    asked = request_for("numpy", manager="conda", channels=("https://host/c",))
    with pytest.raises(WrongUseError, match=r"a lock is not a (hash lock|lock of conda)"):
        locks.read_lock(locks.render_lock(asked, CONDA_LOCK.replace(damage, "")), "a lock")


def test_who_asks_for_a_pin_is_read_from_the_lock() -> None:
    text = (
        f"gguf==0.19.0 {HASH}\n    # via -r requirements.in\n"
        f"numpy==2.4.6 {HASH}\n    # via\n    #   gguf\n    #   Other_Name\n    #   -r requirements.in\n"
        f"tqdm==4.67 {HASH}\n    # via gguf\n"
    )
    content = locks.read_lock(text, "a lock")
    assert {pin.name: pin.required_by for pin in content.pins} == {
        "gguf": (),
        "numpy": ("gguf", "other-name"),
        "tqdm": ("gguf",),
    }


def test_a_build_of_torch_that_is_not_decided_names_no_lock() -> None:
    with pytest.raises(SpecError, match="not decided yet"):
        request_for("torch", torch_backend="auto")
