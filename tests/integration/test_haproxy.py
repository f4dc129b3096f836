"""The adapter, with a real HAProxy."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from inline_snapshot import snapshot

from blocks.processes.ports import free_port
from blocks.services import haproxy
from blocks.services.haproxy import HAProxy
from tasks.core.errors import MissingToolError, PortTakenError, RolloutError
from tasks.rollout.container.models import Route, Slot
from tasks.rollout.container.proxy import send_to, take_out

pytestmark = pytest.mark.haproxy


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[HAProxy]:
    proxy = HAProxy(tmp_path / ("a-long-name" * 12) / "proxy")
    proxy.save(Route(host="127.0.0.1", port=free_port()))
    yield proxy
    proxy.stop(drain_s=0)


def test_slots_follow_commands(proxy: HAProxy) -> None:
    proxy.start()
    assert proxy.answers()
    assert {slot.state for slot in proxy.slots().values()} == {"maint"}
    proxy.send(send_to("green", 4000))
    assert proxy.slots() == {"blue": Slot(state="drain", port=1), "green": Slot(state="ready", port=4000)}
    proxy.send(take_out("blue"))
    assert proxy.slots()["blue"].state == "maint"


def test_what_was_saved_survives_a_restart(proxy: HAProxy) -> None:
    route = proxy.route()
    assert route is not None
    proxy.start()
    proxy.save(route.model_copy(update={"slot": "blue", "backend_port": 4000, "release": "sha256:r"}))
    _kill(proxy)
    assert not proxy.answers()
    proxy.start()
    assert proxy.slots()["blue"] == Slot(state="ready", port=4000)
    assert proxy.slots()["green"].state == "maint"


def test_a_refused_command_is_an_error(proxy: HAProxy) -> None:
    proxy.start()
    with pytest.raises(RolloutError) as caught:
        proxy.send(("set server engine/red state ready",))
    assert caught.value.detail == "No such server."


def test_a_dead_proxy_is_told_from_a_refusal(proxy: HAProxy) -> None:
    with pytest.raises(RolloutError, match="does not answer"):
        proxy.slots()


def test_a_port_is_not_shared_with_another_proxy(proxy: HAProxy, tmp_path: Path) -> None:
    proxy.start()
    route = proxy.route()
    assert route is not None
    second = HAProxy(tmp_path / "second")
    second.save(route)
    with pytest.raises(PortTakenError):
        second.start()
    assert httpx.get(f"http://127.0.0.1:{route.port}").status_code == 503


def test_a_configuration_that_haproxy_refuses_is_shown(proxy: HAProxy) -> None:
    (proxy.folder / "haproxy.cfg").write_text("nonsense\n")
    with pytest.raises(RolloutError) as caught:
        proxy.start()
    assert "unknown keyword 'nonsense'" in (caught.value.detail or "")


def test_without_configuration_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="holds no configuration"):
        HAProxy(tmp_path).start()


def test_a_stranger_with_the_same_process_id_is_left_alone(proxy: HAProxy) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (proxy.folder / "haproxy.pid").write_text(str(stranger.pid))
        proxy.stop(drain_s=0)
        assert stranger.poll() is None
        assert not proxy.folder.exists()
        proxy.stop(drain_s=0)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_missing_haproxy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "_FOLDERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError) as caught:
        HAProxy.program()
    assert str(caught.value) == snapshot(
        "target docker needs HAProxy to switch traffic, and it is not installed "
        "(apt-get install haproxy, or use target: process)"
    )


def _kill(proxy: HAProxy) -> None:
    process = psutil.Process(int((proxy.folder / "haproxy.pid").read_text()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def test_a_proxy_is_known_by_any_spelling_of_its_folder(proxy: HAProxy, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(proxy.folder.parent)
    proxy.start()
    (proxy.folder / "haproxy.pid").unlink()
    assert HAProxy(tmp_path / "link" / proxy.folder.name).lives()
