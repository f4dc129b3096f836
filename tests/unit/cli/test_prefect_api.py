"""The Prefect API that a command's runs report to."""

from __future__ import annotations

from typing import cast

import pytest

from blocks.prefect.server import TemporaryServer
from deployments import prefect_api
from deployments.prefect_api import PrefectApi
from tasks.core.errors import ModelError


@pytest.mark.parametrize("fails", [False, True], ids=["run that ends well", "run that fails"])
def test_what_was_logged_is_delivered_before_the_commands_own_server_ends(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last lines of a failed deploy are those of a log that found nobody, and not the way out."""
    delivered: list[str] = []
    monkeypatch.setattr(prefect_api, "_flush", lambda: delivered.append("all"))

    def run(api: PrefectApi) -> None:
        with api.quiet_runs():
            assert not delivered
            if fails:
                raise ModelError("no model")

    own = PrefectApi("http://127.0.0.1:9/api", cast(TemporaryServer, object()))
    if fails:
        with pytest.raises(ModelError):
            run(own)
    else:
        run(own)
    assert delivered == ["all"]
    with PrefectApi("http://127.0.0.1:9/api").quiet_runs():  # another's server goes on
        pass
    assert delivered == ["all"]
