"""Throughput through HAProxy beside the own forwarder, paired: both before one engine, in turns, in one run.

`python -m benchmarks.data_plane [--rounds N] [--out FILE]`

The engine answers a completion of 300 bytes at once, or streams 64 events; 12 clients with kept connections ask
without a pause. Engine, clients and proxies are processes of their own. Figures are medians of requests per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENTS = 12
WARM_UP_S, ROUND_S = 0.3, 2.0
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n" + b"x" * 300
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": [{"text": " token", "index": 0}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
BODY = json.dumps({"model": "chat", "prompt": "The " * 50, "max_tokens": 64}).encode()


def main() -> None:
    if sys.argv[1:2] == ["engine"]:
        return asyncio.run(serve())
    if sys.argv[1:2] == ["forwarder"]:
        return asyncio.run(forward(int(sys.argv[2])))
    if sys.argv[1:2] == ["clients"]:
        print(asyncio.run(ask(int(sys.argv[2]), sys.argv[3])))
        return None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--haproxy", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "data_plane.json")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.haproxy)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["median"], indent=1))
    return None


def measure(rounds: int, haproxy: Path) -> dict[str, object]:
    """Requests per second of each contender in each round, and their medians."""
    with tempfile.TemporaryDirectory() as folder:
        engine, engine_port = started("engine")
        forwarder, forwarder_port = started("forwarder", str(engine_port))
        proxy, proxy_port = start_haproxy(haproxy, engine_port, Path(folder))
        ports = {"direct": engine_port, "forwarder": forwarder_port, "haproxy": proxy_port}
        try:
            found: dict[str, dict[str, list[float]]] = {
                kind: {name: [] for name in ports} for kind in ("plain", "stream")
            }
            for number in range(rounds):
                for kind, rows in found.items():
                    for name in list(ports) if number % 2 else reversed(ports):
                        rows[name].append(float(output("clients", str(ports[name]), kind)))
        finally:
            for child in (engine, forwarder, proxy):
                child.kill()
    version = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    return {
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0], "haproxy": version},
        "rounds": rounds,
        "clients": CLIENTS,
        "median": {kind: summary(rows) for kind, rows in found.items()},
        "requests_per_s": found,
    }


def summary(rows: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and the median of the ratios of each round's pair."""
    ratios = [new / old for new, old in zip(rows["haproxy"], rows["forwarder"], strict=True)]
    return {name: round(statistics.median(each), 1) for name, each in rows.items()} | {
        "ratio": round(statistics.median(ratios), 2)
    }


def output(*words: str) -> str:
    command = [sys.executable, "-m", "benchmarks.data_plane", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def started(*words: str) -> tuple[subprocess.Popen[str], int]:
    """A process of this module, and the port that it prints."""
    command = [sys.executable, "-m", "benchmarks.data_plane", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def start_haproxy(program: Path, engine_port: int, folder: Path) -> tuple[subprocess.Popen[str], int]:
    from tasks.rollout.proxy.config import proxy_config
    from tasks.rollout.proxy.slots import Route

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as service, socket.create_server(("127.0.0.1", 0)) as metrics:
        port = service.getsockname()[1]
        route = Route("127.0.0.1", port, "blue", engine_port)
        binds = [f"fd@{one.fileno()}" for one in (service, metrics)]
        (folder / "haproxy.cfg").write_text(proxy_config(route, bind=binds[0], metrics=binds[1]))
        command = [str(program), "-db", "-C", str(folder), "-f", "haproxy.cfg"]
        child = subprocess.Popen(command, pass_fds=[service.fileno(), metrics.fileno()], env={}, text=True)
        return child, port


async def serve() -> None:
    """The engine: the least that answers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(BODY))
                if b"/stream" not in head:
                    writer.write(PLAIN)
                    continue
                writer.write(HEAD)
                for _ in range(64):
                    writer.write(CHUNK)
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def forward(engine_port: int) -> None:
    from tasks.rollout.daemon.forwarder import Backend, Forwarder

    forwarder = Forwarder()
    forwarder.backend = Backend("127.0.0.1", engine_port)
    print(await forwarder.listen("127.0.0.1", 0), flush=True)
    await asyncio.Event().wait()


async def ask(port: int, kind: str) -> float:
    """Requests per second of all clients together; a request that fails ends the run."""
    begin = time.monotonic() + WARM_UP_S
    request = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (kind.encode(), len(BODY), BODY)

    async def client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        good = 0
        while (now := time.monotonic()) < begin + ROUND_S:
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            if kind == "plain":
                await reader.readexactly(300)
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            good += now >= begin
        writer.close()
        return good

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS)))) / ROUND_S


if __name__ == "__main__":
    main()
