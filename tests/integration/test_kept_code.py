"""A service runs on when the checkout and the environment that started it are deleted."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from releases import make_release
from strays import engines_of, processes_of, proxies_of
from waiting import wait_until

from blocks.services.kept_code import SUPERVISOR, keep_daemons, keep_script, lasting_python
from blocks.services.sampler import sampler_pid
from blocks.services.supervisor import SupervisedService
from tasks.core.release import Launch, ServiceFolder
from tasks.rollout.models import Running

SERVE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from blocks.services.sampler import start_sampler
    from blocks.services.service_processes import ServiceProcesses
    from blocks.services.supervisor import SupervisedService
    from tasks.core.release import Release, ServiceFolder

    assert sys.argv[3] in SupervisedService.claim.__code__.co_filename
    release = Release.model_validate_json(Path(sys.argv[1]).read_bytes())
    folder = ServiceFolder(Path(sys.argv[2]), release.name)
    with SupervisedService(folder) as service:
        port = service.claim("127.0.0.1", None)
        new = service.start(release)
        service.switch(new)
        service.settle(new, drain_s=0)
    folder.state_file.write_text("{}")
    start_sampler(folder, ServiceProcesses(kind="supervised", socket=folder.control_socket))
    print(port)
    """
)


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the code with an environment of its own, as a clone has."""
    folder = tmp_path / "checkout"
    for package in ("tasks", "blocks"):
        shutil.copytree(repository / package, folder / package)
    python = folder / ".venv" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", lasting_python(), python.parent.parent], check=True)
    packages = next((folder / ".venv" / "lib").glob("python*/site-packages"))
    (packages / "clone.pth").write_text(f"{folder}\n{site.getsitepackages()[0]}\n")
    return folder


def test_a_service_outlives_the_clone_that_started_it(
    checkout: Path,
    tmp_path: Path,
    slipway_home: Path,
    services: Callable[[str], ServiceFolder],
    repository: Path,
) -> None:
    engine = Path(shutil.copy(repository / "tests" / "support" / "small_engine.py", tmp_path))
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    argv = (lasting_python(), "-I", "-S", str(engine), "{host}", "{port}", str(slipway_home))
    release = make_release(Path(lasting_python()), model).model_copy(
        update={"launch": Launch(argv=argv, model_file=model)}
    )
    document = tmp_path / "release.json"
    document.write_text(release.model_dump_json(by_alias=True))
    folder = services(release.name)
    python = checkout / ".venv" / "bin" / "python"
    serve = [python, "-P", "-c", SERVE, document, folder.root.parent, str(checkout)]
    port = int(subprocess.run(serve, check=True, capture_output=True, text=True).stdout)

    shutil.rmtree(checkout)
    assert not [
        one for one in processes_of(slipway_home) if str(checkout) in " ".join([one.exe(), *one.cmdline()])
    ]
    engines_of(slipway_home)[0].kill()
    wait_until(lambda: _running(folder).restarts == 1 and _running(folder).up, "the engine is started again")
    os.kill(_running(folder).pid or 0, signal.SIGKILL)  # the guard
    wait_until(lambda: _running(folder).restarts == 2 and _running(folder).up, "and again under a new guard")
    wait_until(lambda: _answers(port), "the service answers")
    (proxy,) = proxies_of(slipway_home)
    assert Path(proxy.exe()).is_relative_to(slipway_home)
    proxy.kill()
    wait_until(lambda: proxy not in proxies_of(slipway_home), "the proxy is dead")
    wait_until(lambda: _answers(port), "another one answers")
    sampler = psutil.Process(sampler_pid(folder) or 0)
    assert Path(sampler.exe()) == Path(lasting_python()).resolve()


def _running(folder: ServiceFolder) -> Running:
    with SupervisedService(folder) as service:
        found = service.running()
    assert found is not None
    return found


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_copies_that_nothing_runs_from_are_removed_and_damaged_ones_mended(tmp_path: Path) -> None:
    old = tmp_path / "daemon" / "0123456789abcdef"
    used = tmp_path / "daemon" / "fedcba9876543210"
    for folder in (old, used):
        folder.mkdir(parents=True)
    script = used / "sampler.py"
    script.write_text("print(flush=True); input()")
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        kept = keep_daemons(tmp_path)
        assert sorted(kept.parent.iterdir()) == sorted([kept, used])
        process.communicate(b"\n")
    whole = (kept / SUPERVISOR).read_bytes()
    (kept / SUPERVISOR).write_bytes(b"")
    half = kept / f"{SUPERVISOR}.{process.pid}.part"
    half.touch()
    assert keep_daemons(tmp_path) == kept
    assert (kept / SUPERVISOR).read_bytes() == whole
    assert not half.exists()


def test_a_script_keeps_its_name_and_gets_a_folder_for_each_content(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("one")
    first = keep_script(tmp_path, script)
    script.write_text("two")
    assert (first.name, first.read_text(), keep_script(tmp_path, script).read_text()) == (
        "server.py",
        "one",
        "two",
    )
    assert first != keep_script(tmp_path, script)
