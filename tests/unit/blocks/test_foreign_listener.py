"""A program of another user's on the local server's port is told no key."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from local_place import NOBODY, SYSTEM_PYTHON

from blocks.ports import is_own_listener
from blocks.prefect_server import check_door, wait_until_it_answers
from tasks.core.errors import AccessError
from tasks.core.settings import Settings

LISTENER = """
import http.server, sys
class Any(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers.get("Authorization"), flush=True)
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Any)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def listener() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The API's address where another user's program answers everything with 200, and that program."""
    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        SYSTEM_PYTHON,
        "-c",
        LISTENER,
    ]
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
    program.kill()
    assert program.stdout is not None
    assert program.stdout.read().splitlines() == ["/api/health None"]


def test_nothing_that_listens_is_nobody_elses() -> None:
    assert is_own_listener(1)
