"""Correct settings in the user's environment that would make clients fail with tracebacks.

Done once, before anything else is loaded; children inherit the result.
"""

from __future__ import annotations

import locale
import os
import ssl
import sys
from collections.abc import Iterator, MutableMapping
from functools import lru_cache
from pathlib import Path

from tasks.core.errors import ModelError
from tasks.core.files import read_regular
from tasks.core.proxies import plan_proxies

_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "PREFECT_API_SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
)
_FOLDERS_TOO = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Read by requests and similar clients, which also accept a folder; httpx, Prefect and boto3 need a file."""

_MOST_BYTES = 1 << 24
_UTF8 = "PYTHONUTF8"


def use_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if the locale has another encoding; children inherit the mode.

    Tokenizers, specs, locks and file names are UTF-8, whatever the terminal's language.
    """
    old = locale.getencoding().lower() != "utf-8" or sys.getfilesystemencoding() != "utf-8"
    if old and os.environ.get(_UTF8) != "1":
        os.environ[_UTF8] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ[_UTF8] = "1"


def print_anything() -> None:
    """Show `?` for a character that the terminal's encoding lacks, instead of raising `UnicodeEncodeError`."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's stand-in has none
        if reconfigure is not None:
            reconfigure(errors="replace")


def repair_variables(environ: MutableMapping[str, str]) -> Iterator[str]:
    """Exempt the loopback from proxies, and remove values that no client can use; one message for each."""
    changes = plan_proxies(environ)
    environ.update(changes.set_to)
    for name in changes.unusable:
        del environ[name]  # its value is not shown: it may contain a password
        yield f"{name} is not a proxy's address and is ignored; write http://HOST:PORT, or unset it"
    for name in _CA_VARIABLES:
        if (path := environ.get(name)) and (why := _unusable(Path(path), name in _FOLDERS_TOO)):
            del environ[name]
            yield f"{name} is {path}, which contains no certificates ({why}), and is ignored; correct or unset it"


def _unusable(path: Path, folder_too: bool) -> str | None:
    """Why certificates cannot be read from `path`; None if they can. A pipe and a device are not even opened."""
    try:
        if not (folder_too and path.is_dir()):
            _load_certificates(path, read_regular(path, _MOST_BYTES))
    except ModelError as error:
        return error.what.removeprefix(f"{path} ")
    except ssl.SSLError:
        return "not in PEM format"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or "not a path"
    return None


@lru_cache(maxsize=8)
def _load_certificates(path: Path, content: bytes) -> None:
    """Raises `ssl.SSLError`. Several variables mostly name the same bundle, and a bundle takes 20 ms."""
    ssl.create_default_context(cafile=str(path))
