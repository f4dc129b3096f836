"""Slipway's own code that outlives a command, copied into the home: a service runs on when the checkout is gone.

Copies are named by the digest of their content, so that a process that runs finds what it was started with.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from blocks.processes import process_guard
from blocks.processes.environment_users import running_below
from tasks.core.files import sweep_dead_writers, write_atomically
from tasks.leaks import daemon as sampler
from tasks.rollout import daemon, proxy

SUPERVISOR, SAMPLER, GUARD = "supervisor.py", "sampler.py", "process_guard.py"
SCRIPTS = "scripts"
"""Folder of the home with the scripts that start engines."""

TEMPLATES = "chat_templates"
"""Folder of the home with the chat templates that users name."""

_PACKAGES = {"tasks/rollout/daemon": daemon, "tasks/rollout/proxy": proxy}
_START_SUPERVISOR = b'''"""Start a service's supervisor from the package next to this script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tasks.rollout.daemon.__main__ import main

sys.exit(main())
'''


def lasting_python() -> str:
    """The Python that this one's virtual environment was made from: it stays when the environment is deleted.

    It has none of the environment's packages.
    """
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(base) if base.is_file() else sys.executable


def keep_daemons(home: Path) -> Path:
    """The folder with `SUPERVISOR`, `SAMPLER` and `GUARD`. Older copies that nothing runs from are removed."""
    folder = _keep(home / "daemon", _daemons())
    _sweep(folder)
    return folder


def keep_haproxy(home: Path, program: Path) -> Path:
    """A copy of HAProxy and the libraries that it loads from its own folder; older ones as with `keep_daemons`."""
    files = {
        str(path.relative_to(program.parent)): path for path in program.parent.rglob("*") if path.is_file()
    }
    folder = _keep(home / "haproxy", {name: path.read_bytes() for name, path in files.items()})
    (folder / program.name).chmod(0o700)
    _sweep(folder)
    return folder / program.name


def _sweep(kept: Path) -> None:
    for other in kept.parent.iterdir():
        if other != kept and not running_below(other):
            shutil.rmtree(other, ignore_errors=True)


def keep_script(home: Path, script: Path) -> Path:
    """A copy of a script that starts an engine. A release names it, so it is never removed."""
    return _keep(home / SCRIPTS, {script.name: script.read_bytes()}) / script.name


def keep_template(home: Path, text: str) -> Path:
    """A copy of a chat template that replaces the model's own. A release names it, so it is never removed.

    A container's user must be able to read it, as it reads the model.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = home / TEMPLATES / digest / "chat_template.jinja"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text, private=False)
    return path


def _daemons() -> dict[str, bytes]:
    packages = {f"{parent}/__init__.py": b"" for parent in ("tasks", "tasks/rollout", *_PACKAGES)}
    modules = {
        f"{name}/{path.name}": path.read_bytes()
        for name, package in _PACKAGES.items()
        for path in _folder_of(package).glob("*.py")
    }
    return {
        **packages,
        **modules,
        SUPERVISOR: _START_SUPERVISOR,
        SAMPLER: Path(str(sampler.__file__)).read_bytes(),
        GUARD: Path(str(process_guard.__file__)).read_bytes(),
    }


def _folder_of(package: object) -> Path:
    return Path(next(iter(package.__path__)))  # type: ignore[attr-defined]


def _keep(parent: Path, files: Mapping[str, bytes]) -> Path:
    """The folder below `parent` with exactly these contents; a damaged file of it is rewritten, a half-written
    one is removed."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    folder = parent / digest.hexdigest()[:16]
    sweep_dead_writers(folder)
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
    return folder
