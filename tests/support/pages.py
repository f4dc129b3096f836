"""Pages in a real browser."""

from __future__ import annotations

from playwright.sync_api import Error, Page, Response


def go(page: Page, address: str) -> Response | None:
    """Open the address; again if a container's network appears meanwhile, when Chromium ends all requests."""
    for _ in range(4):
        try:
            return page.goto(address)
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in error.message:
                raise
    return page.goto(address)
