"""HAProxy's configuration for one public address of a service, the same on every target. Pure."""

from __future__ import annotations

import json

from tasks.rollout.proxy.keys import FILE, OPEN
from tasks.rollout.proxy.slots import BACKEND, BACKEND_HOST, SLOTS, Route

REQUESTS = "requests"
"""The ring buffer with the timers of the last requests."""

REQUESTS_BYTES = 1 << 20
BUFFER_BYTES = 1 << 20
"""Of these, a connection has one each way at most, and only while it holds data."""

LONGEST_HEAD_BYTES = 31 << 10
LARGEST_BODY_BYTES = 64 << 20
LARGEST_UNSIZED_BODY_BYTES = 960 << 10
"""Without `Content-Length`: fits into a buffer with the longest head and what HAProxy keeps free."""

CLIENT_S = 30
"""How long a client may take for a request, and afterwards without taking a byte of its answer."""

HEALTH = "/health"
"""What everyone may ask: load balancers have no key."""

_NO_PORT = 1
"""Placeholder of a slot without an engine; it is in maintenance, so nothing goes there."""

_ERRORS = {  # HAProxy answers a head that it cannot read, or that does not come, with a page of its own
    400: "the request is not valid HTTP, or the client closed its side of the connection before the answer",
    408: f"the request was not complete after {CLIENT_S} s",
    500: "the proxy failed; send the request again",
    502: "the engine ended, or answered something that is not HTTP",
    503: "no engine is running",
    504: "the engine did not answer in time",
}
_TYPES = {401: "authentication_error"}
_LOG = "%Ts.%ms %HM %{+E}HPO status=%ST engine=%s TR=%TR Tw=%Tw Tc=%Tc Tr=%Tr Ta=%Ta bytes=%B retries=%rc end=%tsc"


def proxy_config(route: Route, *, bind: str, metrics: str) -> str:
    """The configuration that sends requests where `route` says.

    `bind` and `metrics` are addresses as HAProxy's `bind` takes them: `127.0.0.1:8000`, or `fd@3` for an inherited
    socket.

    One thread, so that a runtime command runs between two steps of a request, never during one. Each request to an
    engine gets its own connection: a reused one may close under a POST, which must not be sent twice. Only a refused
    connection is tried again, once a second: requests wait like this for an engine that is being started again.

    HAProxy cannot count a body of unknown length while it passes, chunked or by HTTP/2. So such a body has to fit
    into a buffer with its head, or it is refused before any of it is passed on.
    The digest of a request's key has to be in the file `keys` of the proxy's folder, unless the entry `open` is.
    The key itself is not passed on: an engine may log it.
    `timeout client` does not count while an engine computes or a stream pauses: then `timeout server` does.
    """
    no_key = "a key of this service is missing or wrong: send Authorization: Bearer KEY"
    long_head = _refusal(431, f"the head is longer than {LONGEST_HEAD_BYTES} bytes")
    unsized = f"without Content-Length the body can have {LARGEST_UNSIZED_BODY_BYTES} bytes at most"
    too_large = f"the body is larger than {LARGEST_BODY_BYTES} bytes"
    return f"""\
global
    nbthread 1
    noreuseport
    tune.bufsize {BUFFER_BYTES}
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
    option http-ignore-probes
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
    acl sized req.hdr(content-length) -m found
    acl open str({OPEN}) -m str -f {FILE}
    acl bearer http_auth_bearer,sha2(256),hex,lower -m str -f {FILE}
    acl header req.fhdr(x-api-key),sha2(256),hex,lower -m str -f {FILE}
    acl health path {HEALTH}
    http-request {long_head} if {{ req.hdrs,length gt {LONGEST_HEAD_BYTES} }}
    http-request {_refusal(401, no_key)} if !open !health !bearer !header
    http-request del-header authorization if !open
    http-request del-header x-api-key if !open
    http-request {_refusal(413, unsized)} if !sized {{ req.body_len gt {LARGEST_UNSIZED_BODY_BYTES} }}
    http-request {_refusal(413, too_large)} if sized {{ req.body_size gt {LARGEST_BODY_BYTES} }}
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
        "type": _TYPES.get(status, "unavailable" if status > 500 else "invalid"),
    }
    challenge = "hdr WWW-Authenticate Bearer " if status == 401 else ""
    return f"{challenge}hdr Connection close content-type application/json string '{json.dumps({'error': error})}'"


def _server(route: Route, slot: str) -> str:
    if route.slot == slot and route.backend_port is not None:
        return f"    server {slot} {BACKEND_HOST}:{route.backend_port}\n"
    return f"    server {slot} {BACKEND_HOST}:{_NO_PORT} disabled\n"
