"""What uses a folder is seen by its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from blocks.processes.environment_users import running_below


@pytest.mark.parametrize(
    ("word", "uses"),
    [
        ("{folder}", True),  # vllm serve FOLDER
        ("{folder}/", True),
        ("{folder}/model.gguf", True),
        ("--model={folder}", True),
        ("--model={folder}/model.gguf", True),
        ("{folder}-2", False),
        ("--model={folder}-2/model.gguf", False),
        ("{parent}", False),
        ("below{folder}", False),
        ("{link}/3f2a-auto/model.gguf", True),  # the same folder by another way
        ("--model={link}/3f2a-auto", True),
        ("{link}/3f2a-auto-2", False),
        ("{folder}/python", True),  # a link that leads out of it
    ],
)
def test_a_folder_is_used_by_what_is_started_with_it(tmp_path: Path, word: str, uses: bool) -> None:
    folder = tmp_path / "3f2a-auto"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    argument = word.format(folder=folder, parent=tmp_path, link=link)
    command = [sys.executable, "-c", "input()", argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert running_below(folder) == [process.pid] * uses
        assert running_below(link / folder.name) == [process.pid] * uses
        process.communicate(b"\n")
    assert running_below(folder) == []
