"""Every command in the README and in docs/, run in order as a reader would, with what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from console_blocks import examples_in, normalise, pattern_of

pytestmark = [pytest.mark.engine, pytest.mark.server]


PAGES = [page for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md")) if examples_in(page)]


@pytest.fixture
def reader(tmp_path: Path, repository: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader with an empty home; what they started is ended."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "SLIPWAY_HOME": str(tmp_path / "home"),
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "VENV": str(binaries.parent),
    }
    # Not a make within `make test`, which would name the folder it enters and leaves.
    for name in ("PREFECT_API_URL", "MAKELEVEL", "MAKEFLAGS", "MFLAGS"):
        environment.pop(name, None)
    yield environment
    for command in (["slipway", "stop", "tiny"], ["slipway", "down"]):
        subprocess.run(command, env=environment, cwd=repository, capture_output=True, check=False)
    for process in psutil.process_iter(["cmdline"]):
        assert str(tmp_path) not in " ".join(process.info["cmdline"] or []), process


def test_what_is_not_run_here_is_what_runs_this(repository: Path) -> None:
    """`make test` cannot run itself; every other command is in a block that is run."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (repository / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks == ["make test\n"]


def run_examples(page: Path, environment: dict[str, str], folder: Path) -> int:
    """Run a page's commands in order in `folder`; how many there were."""
    examples = examples_in(page)
    for example in examples:
        ended = subprocess.run(
            ["bash", "-c", example.command],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        shown = normalise(ended.stdout)
        assert ended.returncode == 0, f"$ {example.command}\n{ended.stdout}"
        assert pattern_of(example.expected).fullmatch(shown), (
            f"$ {example.command}\nprints\n{shown}\ninstead of\n" + "\n".join(example.expected)
        )
    return len(examples)


def test_every_command_of_the_readme_prints_what_it_says(reader: dict[str, str], repository: Path) -> None:
    assert run_examples(repository / "README.md", reader, repository) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_the_docs_prints_what_it_says(
    page: Path, reader: dict[str, str], tmp_path: Path
) -> None:
    assert run_examples(page, reader, tmp_path)
