"""The adapter, with a real HAProxy."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from inline_snapshot import snapshot

from blocks.processes.ports import free_port
from blocks.services.haproxy import HAProxy, find_haproxy, haproxy_to_start
from tasks.core.errors import MissingToolError, PortTakenError, RolloutError
from tasks.core.settings import Settings
from tasks.rollout.proxy.slots import Route, Slot, drain, send_to, take_out


@pytest.fixture
def proxy(tmp_path: Path, slipway_home: Path) -> Iterator[HAProxy]:
    proxy = HAProxy(tmp_path / ("a-long-name" * 12) / "proxy")
    proxy.save(Route(host="127.0.0.1", port=free_port()))
    proxy.lock(None)
    yield proxy
    proxy.stop(drain_s=0)


def test_slots_follow_commands(proxy: HAProxy) -> None:
    proxy.start()
    assert proxy.answers()
    assert {slot.state for slot in proxy.slots().values()} == {"maint"}
    proxy.send((*send_to("green", 4000), *drain(["blue"])))
    slots = proxy.slots()
    assert (slots["blue"], slots["green"]) == (Slot(state="drain", port=1), Slot(state="ready", port=4000))
    proxy.send(take_out("blue"))
    assert proxy.slots()["blue"].state == "maint"


def test_what_was_saved_survives_a_restart(proxy: HAProxy) -> None:
    route = proxy.route()
    assert route is not None
    proxy.start()
    proxy.save(replace(route, slot="blue", backend_port=4000, release="sha256:r"))
    _kill(proxy)
    assert not proxy.answers()
    proxy.start()
    assert proxy.slots()["blue"] == Slot(state="ready", port=4000)
    assert proxy.slots()["green"].state == "maint"


def test_a_refused_command_is_an_error(proxy: HAProxy) -> None:
    proxy.start()
    with pytest.raises(RolloutError) as caught:
        proxy.send(("set server engine/purple state ready",))
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
    second.lock(None)
    with pytest.raises(PortTakenError):
        second.start()
    assert httpx.get(f"http://127.0.0.1:{route.port}").status_code == 503


def test_a_configuration_that_haproxy_refuses_is_shown(proxy: HAProxy) -> None:
    (proxy.folder / "haproxy.cfg").write_text("nonsense\n")
    with pytest.raises(RolloutError) as caught:
        proxy.start()
    assert "unknown keyword 'nonsense'" in (caught.value.detail or "")


def test_without_configuration_nothing_starts(tmp_path: Path, slipway_home: Path) -> None:
    with pytest.raises(RolloutError, match="does not contain a proxy's configuration"):
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


def test_a_program_that_is_named_and_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, slipway_home: Path
) -> None:
    monkeypatch.setenv("SLIPWAY_HAPROXY", "haproxy-of-mine")
    with pytest.raises(MissingToolError) as caught:
        find_haproxy(Settings.load())
    assert str(caught.value) == snapshot(
        "SLIPWAY_HAPROXY is haproxy-of-mine, but there is no such program "
        "(name another program, or unset it to use Slipway's own)"
    )


@pytest.mark.haproxy
def test_the_systems_own_haproxy_takes_the_same_configuration(
    proxy: HAProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_HAPROXY", "haproxy")
    proxy.start()
    process = psutil.Process(int((proxy.folder / "haproxy.pid").read_text()))
    assert Path(process.exe()) == find_haproxy(Settings.load()).resolve()
    proxy.send(send_to("blue", 4000))
    assert proxy.slots()["blue"].state == "ready"


def test_the_program_is_a_copy_in_the_home(slipway_home: Path) -> None:
    program = haproxy_to_start(Settings.load())
    assert program.is_relative_to(slipway_home)
    version = subprocess.run([program, "-vv"], env={}, capture_output=True, text=True, check=True).stdout
    assert "HAProxy version 2.8" in version
    assert "prometheus-exporter" in version


def _kill(proxy: HAProxy) -> None:
    process = psutil.Process(int((proxy.folder / "haproxy.pid").read_text()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def test_a_proxy_is_known_by_any_spelling_of_its_folder(proxy: HAProxy, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(proxy.folder.parent)
    proxy.start()
    (proxy.folder / "haproxy.pid").unlink()
    assert HAProxy(tmp_path / "link" / proxy.folder.name).lives()
