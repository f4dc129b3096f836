"""The user's browser."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path


def show_page(page: Path) -> bool:
    """Open a file in the browser, but never in one that runs in the terminal; whether there is a browser."""
    graphical = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return graphical and webbrowser.open(page.as_uri())
