"""A program of another user's on the local server's port is told no key."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from local_place import NOBODY, SYSTEM_PYTHON

from blocks.prefect.server import check_door, wait_until_it_answers
from blocks.processes.ports import is_own_listener
from tasks.core.errors import AccessError
from tasks.core.settings import Settings

LISTENER = """
import http.server, socket, sys
class Any(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers.get("Authorization"), flush=True)
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    def server_bind(self):
        if ":" in sys.argv[1]:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
server = Server((sys.argv[1], 0), Any)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The API's address where another user's program answers everything with 200, and that program."""
    another = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = [*another, SYSTEM_PYTHON, "-c", LISTENER, request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as program:
        assert program.stdout is not None
        yield f"http://127.0.0.1:{program.stdout.readline().strip()}/api", program
        program.kill()


@pytest.mark.another_user
def test_it_is_told_no_key(listener: tuple[str, subprocess.Popen[str]], slipway_home: object) -> None:
    url, program = listener
    settings = Settings.load()
    with pytest.raises(AccessError, match="another user's program listens on port"):
        check_door(settings, url)
    with pytest.raises(AccessError, match="another user's program listens on port"):
        wait_until_it_answers(url, lambda: True, settings.home / "log")
    with pytest.raises(AccessError) as caught:
        wait_until_it_answers(url, lambda: True, settings.home / "log", taken_fix="run it again")
    assert caught.value.fix == "run it again"
    program.kill()
    assert program.stdout is not None
    assert program.stdout.read().splitlines() == ["/api/health None"] * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_this_users_own_is_known(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=":" in host) as server:
        assert is_own_listener(server.getsockname()[1])
    assert not is_own_listener(1), "nothing listens there"
