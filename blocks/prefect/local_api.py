"""Prefect's server for this user's own programs and browser: `python -m blocks.prefect.local_api PORT`.

Like `prefect server start`, but behind a guard (docs/adr/0080). Prefect checks the key. The guard refuses requests
that a page in the user's browser could send: under another host's name (DNS rebinding), or from another origin.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse

from blocks.processes.ports import LOCALHOST

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = (LOCALHOST, "localhost")
"""Names under which the user reaches the server. The port may differ if it is forwarded (`ssh -L`)."""

SIGN_IN = "/slipway/sign-in"
"""Page that stores the key from the address's fragment where Prefect's UI looks for it."""

_SIGN_IN_PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>Slipway</title>
<p id="message">Signing in…</p>
<script>
const key = btoa(decodeURIComponent(location.hash.slice(1)));
history.replaceState(null, "", location.pathname);
fetch("/api/admin/version", {headers: {Authorization: `Basic ${key}`}}).then((answer) => {
  if (!answer.ok) throw new Error("The server does not accept this key. Run slipway ui again.");
  localStorage.setItem("prefect-password", key);
  location.replace("/");
}).catch((error) => { document.getElementById("message").textContent = error.message; });
</script>
"""
_SIGN_IN_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


_UI_POLICY = (b"content-security-policy", b"frame-ancestors 'none'; connect-src 'self'")
"""Prevents pages of other origins from framing the UI (clickjacking), and the UI from sending data elsewhere."""


class OwnOrigin:
    """Refuses requests from pages of other origins, and serves the page that signs the browser in.

    A browser sends the page's origin with every request that changes something or goes to another origin. Programs
    send none; they need the key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if not _is_own(headers.get("origin"), headers.get("host", "")):
                await PlainTextResponse("requests from other origins are refused", 403)(scope, receive, send)
                return
            if scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", SIGN_IN):
                await HTMLResponse(_SIGN_IN_PAGE, headers=_SIGN_IN_HEADERS)(scope, receive, send)
                return
        await self._app(scope, receive, _with_policy(send))


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), _UI_POLICY]
        await send(message)

    return send_with_policy


def _is_own(origin: str | None, host: str) -> bool:
    return origin is None or origin == f"http://{host}"


def guarded(app: ASGIApp) -> ASGIApp:
    """The app, limited to requests to its own address from its own pages or from programs."""
    return TrustedHostMiddleware(OwnOrigin(app), allowed_hosts=HOSTS, www_redirect=False)


def main(port: int) -> None:
    """Serve on the loopback until a signal arrives. Settings, including the key, come from the environment."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    os.umask(0o077)  # the database contains the secrets of blocks
    server = get_current_settings().server
    uvicorn.run(
        guarded(create_app(final=True)),
        host=LOCALHOST,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
        log_level=server.logging_level.lower(),
        server_header=False,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
