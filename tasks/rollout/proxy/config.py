"""HAProxy's configuration for one public address of a service, the same on every target. Pure."""

from __future__ import annotations

import json

from tasks.rollout.proxy.slots import BACKEND, BACKEND_HOST, SLOTS, Route

REQUESTS = "requests"
"""The ring that holds the timers of the last requests."""

REQUESTS_BYTES = 1 << 20
LONGEST_HEAD_BYTES = 32 << 10
LARGEST_BODY_BYTES = 64 << 20
CLIENT_S = 30
"""How long a client may take for a request, and afterwards without taking a byte of its answer."""

_NO_PORT = 1
"""Placeholder of a slot without an engine; it is in maintenance, so nothing goes there."""

_ERRORS = {
    408: f"the request was not complete after {CLIENT_S} s",
    502: "the engine ended, or answered something that is not HTTP",
    503: "no engine is running",
    504: "the engine did not answer in time",
}
_LOG = "%Ts.%ms %HM %{+E}HPO status=%ST engine=%s TR=%TR Tw=%Tw Tc=%Tc Tr=%Tr Ta=%Ta bytes=%B retries=%rc end=%tsc"


def proxy_config(route: Route, *, bind: str, metrics: str) -> str:
    """The configuration that sends requests where `route` says.

    `bind` and `metrics` are addresses as HAProxy's `bind` takes them: `127.0.0.1:8000`, or `fd@3` for an inherited
    socket.

    One thread, so that a runtime command runs between two steps of a request, never during one. Each request to an
    engine gets its own connection: a reused one may close under a POST, which must not be sent twice. Only a refused
    connection is tried again, once a second: requests wait like this for an engine that is being started again.

    A body of unknown length has to fit into a buffer with its head, so that no body is larger than it may be.
    `timeout client` does not count while an engine computes or a stream pauses: then `timeout server` does.
    """
    too_long = _refusal(411, "send Content-Length with a body of this size")
    too_large = _refusal(413, f"the body is larger than {LARGEST_BODY_BYTES} bytes")
    return f"""\
global
    nbthread 1
    noreuseport
    tune.bufsize {LONGEST_HEAD_BYTES}
    stats socket unix@admin.sock mode 600 level admin
    stats timeout 10s
    log ring@{REQUESTS} format raw local0

ring {REQUESTS}
    format raw
    maxlen 1024
    size {REQUESTS_BYTES}

defaults
    mode http
    log global
    log-format "{_LOG}"
    option dontlognull
    option contstats
    option http-server-close
    option http-buffer-request
    option abortonclose
    option redispatch 1
    option clitcpka
    clitcpka-idle 60s
    clitcpka-intvl 10s
    clitcpka-cnt 3
    retries {route.queue_s}
    timeout connect 5s
    timeout http-request {CLIENT_S}s
    timeout http-keep-alive 300s
    timeout client {CLIENT_S}s
    timeout queue {route.queue_s}s
    timeout server 4h
    timeout tunnel 4h
{"".join(_error(status) for status in _ERRORS)}
frontend service
    bind {bind}
    acl chunked req.hdr(transfer-encoding) -m found
    http-request {too_long} if chunked {{ req.body_len ge 16384 }} || chunked {{ req.hdrs,length ge 8192 }}
    http-request {too_large} if {{ req.body_size gt {LARGEST_BODY_BYTES} }}
    default_backend {BACKEND}

frontend metrics
    bind {metrics}
    option dontlog-normal
    http-request use-service prometheus-exporter if {{ path /metrics }}
    http-request return status 404

backend {BACKEND}
{"".join(_server(route, slot) for slot in SLOTS)}"""


def _error(status: int) -> str:
    retry = " hdr Retry-After 5" if status == 503 else ""
    return f"    http-error status {status}{retry} {_answer(status, _ERRORS[status])}\n"


def _refusal(status: int, message: str) -> str:
    return f"return status {status} {_answer(status, message)}"


def _answer(status: int, message: str) -> str:
    """An error in the form of the engines' API, after which the connection ends."""
    error = {
        "code": status,
        "message": f"slipway: {message}",
        "type": "unavailable" if status > 500 else "invalid",
    }
    return f"hdr Connection close content-type application/json string '{json.dumps({'error': error})}'"


def _server(route: Route, slot: str) -> str:
    if route.slot == slot and route.backend_port is not None:
        return f"    server {slot} {BACKEND_HOST}:{route.backend_port}\n"
    return f"    server {slot} {BACKEND_HOST}:{_NO_PORT} disabled\n"
