"""The `slipway` command in this process, as users and programs run it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.cli.main import main


class SlipwayCommand:
    """Runs the command and keeps what it printed: `out`, `err` and the exit `code`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.code = 0
        self.out = self.err = ""

    def __call__(self, *arguments: str, code: int | None = 0) -> str:
        """What it printed; the test fails on another exit code than `code`, if one is given."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        self.out, self.err = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        self.code = ended.value.code
        assert code in (None, self.code), self.out + self.err
        return self.out

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The JSON document that it printed."""
        return json.loads(self(*arguments, "--json", code=code))
