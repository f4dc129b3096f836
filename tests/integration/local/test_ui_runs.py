"""What an operator sees of runs, in a real browser, and is told: a no is red under its own name, and is no fault."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from api_server import serving
from local_place import LocalPlace
from pages import go
from playwright.sync_api import Page, expect, sync_playwright
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect_http import wait_for
from random_model import write_random_model

from blocks.prefect.bootstrap import NOTIFICATION_BLOCK
from blocks.prefect.flows import flow, show_state

pytestmark = [pytest.mark.server, pytest.mark.browser]

DEADLINE_MS = 60_000
VERDICTS = {"Serving": False, "Unhealthy": True, "Confirmed": True}
"""Names of states, and whether they say no."""


class Desk(BaseHTTPRequestHandler):
    """Where notifications arrive."""

    state: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.state.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def told(place: LocalPlace) -> Iterator[list[dict[str, Any]]]:
    """What a notification block of the local server sends."""
    heard: list[dict[str, Any]] = []
    reached = {PREFECT_API_URL: f"{place.server}/api", PREFECT_API_AUTH_STRING: place.key}
    with serving(Desk, heard) as address, temporary_settings(updates=reached):
        block = CustomWebhookNotificationBlock(
            name="desk", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        block.save(NOTIFICATION_BLOCK)
        up = place.slipway("up")
        assert "verdicts that say no are reported by 1 notification block" in up.stdout, up.stderr
        yield heard


@pytest.fixture(scope="module")
def refused(place: LocalPlace, told: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A deploy by the command that this host refuses: what it says on standard error."""
    folder = tmp_path_factory.mktemp("refused")
    model = write_random_model(folder / "model")
    spec = folder / "slipway.yaml"
    spec.write_text(
        f"name: tiny\nmodel: file:{model}\nengine: sglang\ntarget: docker\nhardware: {{gpus: 1}}\n"
    )
    finished = place.slipway("deploy", spec)
    assert finished.returncode == 3, finished.stderr
    assert "compatibility says block" in finished.stdout
    return finished.stderr


@pytest.fixture(scope="module")
def runs(place: LocalPlace, told: list[dict[str, Any]], refused: str) -> None:
    """One of each verdict beside it, and a fault."""
    for verdict, says_no in VERDICTS.items():

        @flow(name="check-service", flow_run_name=f"check of {verdict}")
        def check(verdict: str = verdict, says_no: bool = says_no) -> str:
            show_state(verdict, f"the reason of {verdict}", says_no=says_no)
            return verdict

        assert check() == verdict

    @flow(name="check-service", flow_run_name="check of Failed")
    def fault() -> None:
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        fault()


@pytest.fixture(scope="module")
def page(place: LocalPlace, runs: None) -> Iterator[Page]:
    """The UI, signed in. After the runs: Playwright's loop would make Prefect's calls asynchronous."""
    shown = place.json("ui")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        made = browser.new_page(viewport={"width": 1300, "height": 1500})
        made.set_default_timeout(DEADLINE_MS)
        go(made, f"file://{shown['page']}")
        made.get_by_role("link", name="Deployments").wait_for()
        yield made
        browser.close()


def badge_colour(page: Page, run: str, state: str) -> str:
    """Background of the word that a run's row in the list bears, as CSS writes it."""
    row = page.locator(".state-list-item").filter(has=page.get_by_role("link", name=run, exact=True))
    badge = row.locator(".state-badge")
    expect(badge).to_have_text(state, timeout=DEADLINE_MS)
    return str(badge.evaluate("badge => getComputedStyle(badge).backgroundColor"))


def test_a_no_is_red_in_the_list_of_runs_under_its_own_name(
    place: LocalPlace, page: Page, runs: None
) -> None:
    go(page, f"{place.server}/runs")
    names = {"deploy tiny": "Refused", **{f"check of {state}": state for state in (*VERDICTS, "Failed")}}
    colours = {state: badge_colour(page, run, state) for run, state in names.items()}
    if folder := os.environ.get("SLIPWAY_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "runs.png")
    red = colours.pop("Failed")
    green = colours.pop("Serving")
    assert red != green
    assert set(colours.values()) == {red}


def test_a_refused_deploy_is_followed_by_the_page_it_names(page: Page, refused: str) -> None:
    address = re.search(r"^run +(http\S+)$", refused, re.MULTILINE)
    assert address, refused
    go(page, address[1])
    expect(page.get_by_text("Refused").first).to_be_visible(timeout=DEADLINE_MS)
    expect(page.get_by_text(re.compile("compatibility block: ")).first).to_be_visible(timeout=DEADLINE_MS)
    if folder := os.environ.get("SLIPWAY_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "run.png")


def test_verdicts_that_say_no_are_told_and_nothing_else(told: list[dict[str, Any]], runs: None) -> None:
    expected = {"deploy tiny: Refused", "check of Unhealthy: Unhealthy", "check of Confirmed: Confirmed"}
    wait_for(lambda: len(told) >= len(expected) or None, "the notifications")
    assert {message["subject"] for message in told} == expected
    assert any("the reason of Unhealthy" in message["body"] for message in told)


def test_a_no_by_the_worker_is_none_of_its_faults(place: LocalPlace) -> None:
    """The run's process ends well: no traceback, and no word of a crash in the log."""
    run = place.api.run("verify-compatibility", {"request": {"engine": "sglang", "gpus": 1}})
    logs = place.api.logs(run["id"])
    assert (run["state_type"], run["state_name"]) == ("FAILED", "Block"), logs
    assert run["name"] == "compatibility of sglang"
    assert "exited with" not in logs
    assert "Traceback" not in logs
