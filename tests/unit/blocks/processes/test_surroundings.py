"""What is mended in the environment before anything else is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest

from blocks.prefect.settings import forget_other_servers
from blocks.processes.surroundings import repair_variables
from tasks.core.errors import WrongUseError
from tasks.core.settings import Settings

pytestmark = pytest.mark.slow

FILES_ONLY = ("SSL_CERT_FILE", "PREFECT_API_SSL_CERT_FILE", "AWS_CA_BUNDLE")
FOLDERS_TOO = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CA_VARIABLES = (*FILES_ONLY, *FOLDERS_TOO)


@pytest.mark.parametrize("name", CA_VARIABLES)
@pytest.mark.parametrize("content", [None, b"", b"junk", "a link to itself"])
def test_certificates_that_cannot_be_read_are_named_and_not_used(
    name: str, content: bytes | str | None, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.symlink_to(file)
    environ = {name: str(file), "PATH": "/bin"}
    (warning,) = repair_variables(environ)
    assert warning.startswith(f"{name} is {file}, which contains no certificates (")
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("name", CA_VARIABLES)
def test_certificates_that_can_be_read_stay(name: str) -> None:
    environ = {name: certifi.where()}
    assert list(repair_variables(environ)) == []
    assert environ == {name: certifi.where()}


@pytest.mark.parametrize("name", CA_VARIABLES)
def test_a_folder_of_certificates_is_for_the_clients_that_take_one(name: str, tmp_path: Path) -> None:
    environ = {name: str(tmp_path)}
    warnings = list(repair_variables(environ))
    if name in FOLDERS_TOO:
        assert (warnings, environ) == ([], {name: str(tmp_path)})
    else:
        assert (len(warnings), environ) == (1, {})
        assert "Is a directory" in warnings[0]


@pytest.mark.parametrize("name", CA_VARIABLES)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "is a pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: os.truncate(path.open("wb").name, 1 << 30), "is larger than"),
    ],
    ids=["a pipe", "a device", "a huge file"],
)
def test_what_would_be_read_for_ever_is_not_taken_for_certificates(
    name: str, make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    make(path)
    environ = {name: str(path)}
    (warning,) = repair_variables(environ)
    assert f"({said}" in warning
    assert environ == {}


def test_a_proxy_that_is_none_is_named_without_its_password() -> None:
    environ = {"ALL_PROXY": "socks4://me:TopSecret1@proxy:1"}
    (warning,) = repair_variables(environ)
    assert "ALL_PROXY" in warning
    assert "TopSecret1" not in warning
    assert "ALL_PROXY" not in environ


def test_settings_of_another_server_are_forgotten_and_no_others() -> None:
    kept = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://db/prefect",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://db/prefect",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_API_REQUEST_TIMEOUT": "30",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    other = {
        "PREFECT_PROFILE": "work",
        "PREFECT_PROFILES_PATH": "/etc/prefect",
        "PREFECT_API_KEY": "pnu_x",
        "PREFECT_API_AUTH_STRING": "a:b",
        "PREFECT_SERVER_API_AUTH_STRING": "a:b",
        "PREFECT_SERVER_API_BASE_PATH": "/prefect/api",
        "PREFECT_SERVER_API_PORT": "1",
        "PREFECT_API_SSL_CERT_FILE": "/ca.pem",
        "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true",
        "PREFECT_UI_API_URL": "http://x/api",
        "PREFECT_SERVER_UI_SERVE_BASE": "/prefect",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X": "y"}',
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    }
    environ = {**kept, **other}
    forget_other_servers(environ)
    assert environ == kept


LEGACY = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "terminal": {"PYTHONIOENCODING": "ascii"},
    "terminal and locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("legacy", LEGACY.values(), ids=LEGACY)
def test_a_model_with_names_in_other_letters_is_read_whatever_the_locale_is(
    legacy: dict[str, str], random_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "modèle 模型"
    folder.symlink_to(random_model)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"name: chat\nmodel: file:{folder}\nrollout: {{gate: {{prompt: Où}}}}\n", encoding="utf-8"
    )
    slipway = Path(sys.executable).with_name("slipway")
    ended = subprocess.run(
        [slipway, "deploy", spec, "--dry-run"],
        env={**os.environ, "SLIPWAY_HOME": str(tmp_path / "home"), **legacy},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"Nothing was done" in ended.stdout


def test_children_read_utf8_too(tmp_path: Path) -> None:
    """A tokenizer read in the locale's encoding was taken for none at all."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from blocks.processes.surroundings import use_utf8 as u; u(); import os; os.system('env')",
        ],
        env={"PATH": os.environ["PATH"], **LEGACY["C"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PYTHONUTF8=1" in ended.stdout.splitlines()


@pytest.mark.parametrize("home", [None, "", "~nosuchuser/slipway"])
def test_a_user_without_a_home_is_one_clear_line(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))
    if home is None:
        monkeypatch.delenv("SLIPWAY_HOME", raising=False)
    else:
        monkeypatch.setenv("SLIPWAY_HOME", home)
    with pytest.raises(WrongUseError, match="has no home folder here") as caught:
        Settings.load()
    assert "SLIPWAY_HOME" in (caught.value.fix or "")
