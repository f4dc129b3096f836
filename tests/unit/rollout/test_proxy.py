"""The proxy's configuration, commands and answers."""

from __future__ import annotations

import pytest
from inline_snapshot import snapshot

from tasks.rollout.proxy.config import proxy_config
from tasks.rollout.proxy.slots import SLOTS, Route, Slot, drain, other, send_to, slots_in, take_out


def test_a_restarted_proxy_sends_requests_where_it_did() -> None:
    route = Route(host="::1", port=8000, slot="green", backend_port=4000)
    config = proxy_config(route, bind="[::1]:8000", metrics="fd@5")
    assert "    bind [::1]:8000\n" in config
    assert "    server blue 127.0.0.1:1 disabled\n" in config
    assert "    server green 127.0.0.1:4000\n" in config
    assert proxy_config(Route("::1", 8000), bind="", metrics="").count(" disabled\n") == len(SLOTS)


def test_commands_of_a_switch() -> None:
    assert (*send_to("green", 4000), *drain(["blue"])) == snapshot(
        (
            "set server engine/green addr 127.0.0.1 port 4000",
            "set server engine/green state ready",
            "set server engine/blue state drain",
        )
    )
    assert take_out("blue") == snapshot(("set server engine/blue state maint",))


def test_an_answer_that_is_no_table_of_slots_is_refused() -> None:
    answer = "# svname,qcur,scur,bout,status,addr\nblue,1,2,300,DRAIN,127.0.0.1:4000\n\n"
    assert slots_in(answer) == {"blue": Slot("drain", 4000, requests=3, sent_bytes=300)}
    for nonsense in ("", "Permission denied\n", "# a,b\n1,2\n"):
        with pytest.raises(ValueError, match="not an answer"):
            slots_in(nonsense)


def test_slots_take_turns() -> None:
    assert [other(slot) for slot in SLOTS[:2]] == ["green", "blue"]
    assert other(None) == "blue"
