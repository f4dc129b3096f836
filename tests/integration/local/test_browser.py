"""In a real browser: the UI opens for its user by one command, and pages of other origins get nowhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from api_server import serving
from local_place import LocalPlace
from pages import go
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

pytestmark = [pytest.mark.server, pytest.mark.browser]

DEADLINE_MS = 60_000
EVIL = "evil.example"


class StrangePage(BaseHTTPRequestHandler):
    """A page of another origin, with a form and a frame that aim at the server."""

    state: str

    def do_GET(self) -> None:
        api = f"{self.state}/api"
        text = (
            f'<!doctype html><form method="post" enctype="text/plain" action="{api}/flows/">'
            '<input name=\'{"name": "strange", "a": "\' value=\'"}\'><button>send</button></form>'
            f'<iframe src="{self.state}/"></iframe>'
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for which another host's name leads to this machine: what DNS rebinding comes to."""
    arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        yield started
        started.close()


@pytest.fixture
def signed_in(place: LocalPlace, browser: Browser) -> Iterator[Page]:
    """The UI as the page of `slipway ui` opens it; other pages of this browser share its storage."""
    context = browser.new_context()
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    shown = place.json("ui")
    open_until(page, f"file://{shown['page']}", page.get_by_role("link", name="Deployments"))
    yield page
    context.close()


def open_until(page: Page, address: str, wanted: Locator) -> None:
    """Open the page until it shows that.

    When a container's network appears meanwhile, Chromium ends all requests: Prefect's UI then forgets the key and
    asks for one, or stays an empty page without its scripts.
    """
    shown = wanted.or_(page.get_by_placeholder("admin:pass"))
    for _ in range(4):
        with contextlib.suppress(PlaywrightError):
            page.goto(address)
            shown.wait_for(timeout=DEADLINE_MS / 4)
        if wanted.is_visible():
            break
    expect(wanted).to_be_visible()


def test_the_ui_opens_signed_in(signed_in: Page, place: LocalPlace) -> None:
    signed_in.get_by_role("link", name="Deployments").click()
    expect(signed_in.get_by_text("build-environment").first).to_be_visible(timeout=DEADLINE_MS)
    assert place.key.partition(":")[2] not in signed_in.url


def test_without_the_page_the_ui_asks_for_the_key(browser: Browser, place: LocalPlace) -> None:
    page = browser.new_page()
    page.set_default_timeout(DEADLINE_MS)
    asked = page.get_by_placeholder("admin:pass")
    for _ in range(4):
        open_until(page, place.server, asked)
        assert "/login" in page.url
        asked.fill(place.key)
        page.get_by_role("button", name="Login").click()
        with contextlib.suppress(PlaywrightError):  # as in `open_until`
            page.get_by_role("link", name="Deployments").wait_for(timeout=DEADLINE_MS / 4)
            break
    expect(page.get_by_role("link", name="Deployments")).to_be_visible()
    page.close()


def test_a_wrong_key_signs_nobody_out(signed_in: Page, place: LocalPlace) -> None:
    """Any page may send the browser there."""
    go(signed_in, f"{place.server}/slipway/sign-in#slipway%3Awrong")
    expect(signed_in.locator("#message")).to_contain_text("does not accept this key")
    kept = signed_in.evaluate("localStorage.getItem('prefect-password')")
    assert kept
    assert signed_in.evaluate("atob(localStorage.getItem('prefect-password'))") == place.key


FETCHES = {
    "with a preflight": 'fetch(URL, {method: "POST", headers: {"Content-Type": "application/json"}, body: BODY})',
    "with a guessed key": 'fetch(URL, {method: "POST", headers: {Authorization: "Basic c2xpcHdheTpn"}, body: BODY})',
    "with credentials": 'fetch(URL, {method: "POST", credentials: "include", body: BODY})',
    "that reads": "fetch(URL.replace('flows/', 'admin/version'))",
}


@pytest.mark.parametrize("fetch", list(FETCHES))
def test_a_fetch_from_another_origin_is_refused(signed_in: Page, place: LocalPlace, fetch: str) -> None:
    with serving(StrangePage, place.server) as address:
        go(signed_in, address)
        call = FETCHES[fetch].replace("URL", json.dumps(f"{place.server}/api/flows/"))
        call = call.replace("BODY", json.dumps(json.dumps({"name": "strange"})))
        assert signed_in.evaluate(f"{call}.then(() => 'read', (error) => error.name)") == "TypeError"
    assert flows(place, "strange") == 0


@pytest.mark.parametrize("body", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_blind_post_from_another_origin_does_nothing(signed_in: Page, place: LocalPlace, body: str) -> None:
    """Without a preflight: the page cannot read the answer, but the request arrives."""
    with serving(StrangePage, place.server) as address:
        go(signed_in, address)
        with signed_in.expect_response("**/api/flows/") as answered:
            signed_in.evaluate(
                f'fetch("{place.server}/api/flows/", {{method: "POST", mode: "no-cors", '
                f'headers: {{"Content-Type": "{body}"}}, body: JSON.stringify({{name: "strange"}})}})'
            )
        assert answered.value.status == 403
    assert flows(place, "strange") == 0


def test_a_form_of_another_origin_does_nothing(signed_in: Page, place: LocalPlace) -> None:
    with serving(StrangePage, place.server) as address:
        go(signed_in, address)
        with signed_in.expect_response("**/api/flows/") as answered:
            signed_in.get_by_role("button", name="send").click()
        assert answered.value.status == 403
    assert flows(place, "strange") == 0


def test_no_other_page_shows_the_ui_in_a_frame(signed_in: Page, place: LocalPlace) -> None:
    """It would take the user's clicks."""
    said: list[str] = []
    signed_in.on("console", lambda message: said.append(message.text))
    with serving(StrangePage, place.server) as address:
        go(signed_in, address)
        frame = signed_in.frames[1]
        assert frame.url.startswith("chrome-error:")
    assert [text for text in said if "frame-ancestors" in text]


def test_a_web_socket_of_another_origin_is_refused(signed_in: Page, place: LocalPlace) -> None:
    opened = (
        f'new Promise((done) => {{ const socket = new WebSocket("{place.server.replace("http", "ws")}/api/events/out", '
        '"prefect"); socket.onopen = () => done("open"); socket.onerror = () => done("refused"); })'
    )
    with serving(StrangePage, place.server) as address:
        go(signed_in, address)
        assert signed_in.evaluate(opened) == "refused"


def test_another_name_for_this_machine_leads_to_nothing(browser: Browser, place: LocalPlace) -> None:
    page = browser.new_page()
    answer = go(page, f"http://{EVIL}:{place.server.rpartition(':')[2]}/")
    assert answer is not None
    assert (answer.status, answer.text()) == (400, "Invalid host header")
    assert page.evaluate("fetch('/api/admin/version').then((answer) => answer.status)") == 400
    page.close()


def flows(place: LocalPlace, name: str) -> int:
    found: list[object] = place.api.client.post(
        "/flows/filter", json={"flows": {"name": {"any_": [name]}}}
    ).json()
    return len(found)
