"""`slipway ui`: Prefect's UI, signed in; and the key to the local API for other programs."""

from __future__ import annotations

import os
import shlex
import webbrowser
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from deployments.cli.main import print_json
from tasks.core.errors import NotFoundError
from tasks.core.files import write_atomically
from tasks.core.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option(
    "--no-browser", is_flag=True, help="Print the address and how to sign in; do not open a browser."
)
@click.option("--key", "key_alone", is_flag=True, help="Print the key for the sign-in page.")
@click.option("--env", "as_env", is_flag=True, help='Print what prefect needs: eval "$(slipway ui --env)".')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, including the key.")
def ui(no_browser: bool, key_alone: bool, as_env: bool, as_json: bool) -> None:
    """Open the UI of the local server in the browser, signed in."""
    from blocks.prefect.api_key import api_key

    settings = Settings.load()
    api_url = _running(settings)
    server, key = api_url.removesuffix("/api"), api_key(settings)
    if key_alone:
        click.echo(key)
    elif as_env:
        click.echo(f"export PREFECT_API_URL={shlex.quote(api_url)}")
        click.echo(f"export PREFECT_API_AUTH_STRING={shlex.quote(key)}")
    elif as_json:
        page = write_page(settings, server, key)
        shown = {"server": server, "api_url": api_url, "key": key, "page": str(page)}
        print_json(shown, with_secrets=True)
    else:
        _open(write_page(settings, server, key), server, browser=not no_browser)


def _running(settings: Settings) -> str:
    """The API's address. Raises `NotFoundError` if no local server runs, `AccessError` if it has another key."""
    from deployments.local_state import read_local_state, wait_for_server

    state = read_local_state(settings)
    if state is None or not state.alive:
        raise NotFoundError("the local server is not running", fix="start it: slipway up")
    wait_for_server(settings, state)
    return state.api_url


def write_page(settings: Settings, server: str, key: str) -> Path:
    """A page, readable only for this user, that leads to the UI with the key.

    The browser opens the page, not that address, because every user of the machine can read its command line. The
    key is in the address's fragment, which a browser does not send and a server does not log.
    """
    from blocks.prefect.local_api import SIGN_IN

    target = f"{server}{SIGN_IN}#{quote(key, safe='')}"
    page = settings.prefect_home / "open-ui.html"
    script = f'<script>location.replace("{target}")</script>'
    write_atomically(page, f'<!doctype html><meta charset="utf-8">{script}\n')
    return page


def _show(page: Path) -> bool:
    """Open a file in the browser, but never in one that runs in the terminal; whether there is a browser."""
    graphical = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return graphical and webbrowser.open(page.as_uri())


def _open(page: Path, server: str, *, browser: bool) -> None:
    click.echo(f"address  {server}")
    if browser and _show(page):
        click.echo("opened in the browser; if no page appears, sign in there with the key: slipway ui --key")
    else:
        click.echo("sign in  open the address and give the key: slipway ui --key")
