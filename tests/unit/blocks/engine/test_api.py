"""What an engine's `/metrics` say, read from a real socket."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

import pytest
from api_server import serving

from blocks.engine.api import EngineApi
from tasks.core.errors import EngineError


class Metrics(BaseHTTPRequestHandler):
    state: bytes

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.state)))
        self.end_headers()
        self.wfile.write(self.state)

    def log_message(self, *_: object) -> None:
        pass


def test_metrics_are_summed_over_labels_whatever_these_hold() -> None:
    text = (
        "# TYPE waiting gauge\n"
        'waiting{model="a}b",path="{x} y"} 2\n'
        'waiting{model="c"} 3 1700000000000\n'
        "# TYPE done_total counter\n"
        "done_total 4\n"
        "usage NaN\n"
    )
    with serving(Metrics, text.encode()) as address, EngineApi(address) as api:
        found = api.metrics()
    assert (found["waiting"], found["done_total"]) == (5, 4)
    assert found["usage"] != found["usage"]


def test_what_is_not_in_the_format_is_an_error_of_the_engine() -> None:
    with (
        serving(Metrics, b"<html>no metrics</html>") as address,
        EngineApi(address) as api,
        pytest.raises(EngineError, match=r"/metrics is not in Prometheus' format"),
    ):
        api.metrics()
