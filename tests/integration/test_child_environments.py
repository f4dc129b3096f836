"""No child of a process that holds secrets has them in its environment."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from releases import make_release
from secret_values import SECRETS, assert_none_in
from strays import engines_of, supervisors_of

from blocks.candidates import candidate_worker
from blocks.candidates import transformers_scores as library_scores
from blocks.engine.process import serve
from blocks.engine.trial import EnvironmentTrial
from blocks.packages import site_packages, uv
from blocks.prefect import server as prefect_server
from blocks.processes.ports import LOCALHOST, free_port
from blocks.processes.process import run
from blocks.services import haproxy
from blocks.services.kept_code import lasting_python
from blocks.services.sampler import sampler_pid, start_sampler
from blocks.services.service_processes import ServiceProcesses
from blocks.services.supervisor import SupervisedService
from deployments.cli.tune import CommandProbe
from tasks.core.release import Launch, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.base import HOST, PORT, CommandLine
from tasks.environment import proof
from tasks.rollout.proxy.slots import Route

SMALL_ENGINE = Path(__file__).parents[1] / "support" / "small_engine.py"
WRITE_ENVIRONMENT = "import json, os, sys; json.dump(dict(os.environ), open({!r}, 'w'))"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("secrets")
def test_the_processes_of_a_service(
    tmp_path: Path,
    slipway_home: Path,
    services: Callable[[str], ServiceFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    argv = (lasting_python(), "-I", "-S", str(SMALL_ENGINE), "{host}", "{port}", str(slipway_home))
    release = make_release(Path(lasting_python()), model)
    folder = services(release.name)
    with SupervisedService(folder) as service:
        service.claim(LOCALHOST, None)
        new = service.start(release.model_copy(update={"launch": Launch(argv=argv, model_file=model)}))
        service.switch(new)
        service.settle(new, drain_s=0)
        running = service.running()
    assert running is not None
    folder.state_file.write_text("{}")
    sampler = start_sampler(folder, ServiceProcesses(kind="supervised", socket=folder.control_socket))
    assert sampler == sampler_pid(folder)
    guard = psutil.Process(running.pid)
    (supervisor,) = supervisors_of(slipway_home)
    children = supervisor.children(recursive=True)
    assert len(children) == 4, "engine and proxy, each with its guard"
    assert guard in children
    processes = [supervisor, *children, psutil.Process(sampler)]
    for process in processes:
        assert_none_in(process.environ())
    assert engines_of(slipway_home)[0].environ()["OMP_WAIT_POLICY"] == "passive"
    others = stat.S_IRWXG | stat.S_IRWXO
    kept = [path for path in folder.root.rglob("*") if not path.is_dir() and path != folder.state_file]
    assert folder.control_socket in kept
    assert [path for path in kept if path.stat().st_mode & others] == []


@pytest.mark.server
@pytest.mark.usefixtures("secrets")
def test_the_server_of_one_command(slipway_home: Path) -> None:
    with prefect_server.temporary_server(Settings.load()) as server:
        server.wait()
        guard = psutil.Process(server.process.pid)
        for process in (guard, *guard.children(recursive=True)):
            assert_none_in(process.environ())


@pytest.mark.usefixtures("secrets", "slipway_home")
def test_the_proxy(tmp_path: Path) -> None:
    proxy = haproxy.HAProxy(tmp_path / "proxy")
    proxy.save(Route(host=LOCALHOST, port=free_port()))
    proxy.lock(None)
    try:
        proxy.start()
        config = str(proxy.folder / "haproxy.cfg")
        # `process_iter` leaves out what a process that just ended can no longer tell.
        found = [one for one in psutil.process_iter(["cmdline"]) if config in (one.info["cmdline"] or ())]
        assert found
        for process in found:
            assert_none_in(process.environ())
    finally:
        proxy.stop(drain_s=0)


@pytest.mark.usefixtures("secrets")
def test_the_proof_by_import(tmp_path: Path) -> None:
    """The package that is imported is a stranger's."""
    python = tmp_path / "environment" / "bin" / "python"
    own = Path(sys.executable).with_name("uv")
    subprocess.run([own, "venv", "--quiet", "--python", lasting_python(), python.parent.parent], check=True)
    packages = next((tmp_path / "environment" / "lib").glob("python*/site-packages"))
    (packages / "spy.py").write_text(WRITE_ENVIRONMENT.format(str(tmp_path / "seen.json")))
    worker = Path(str(proof.__file__)).parent / "worker" / "import_modules.py"
    assert EnvironmentTrial().run_worker(python, worker, "spy").code == 0
    assert_none_in(json.loads((tmp_path / "seen.json").read_bytes()))


def spy(tmp_path: Path) -> tuple[Path, Path]:
    """A program that writes down its environment, and where."""
    seen, program = tmp_path / "seen.json", tmp_path / "spy"
    program.write_text(f"#!{sys.executable} -I\n" + WRITE_ENVIRONMENT.format(str(seen)))
    program.chmod(0o700)
    return program, seen


def _uv(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv, "find_tool", lambda *_, **__: str(program))
    uv.Uv().complaints(Path(sys.executable))


def _image_packages(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plan:
        name, pins, lock, python, platform = "image", (), program, "3.11", "linux"

    monkeypatch.setattr(site_packages, "find_tool", lambda *_, **__: str(program))
    site_packages.install_packages(Plan(), program.parent / "site")  # type: ignore[arg-type]


def _converter(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate_worker.make(program, program, program, CandidateFormat.F32, program, timeout_s=60)


def _comparison(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="comparing"):
        candidate_worker.compare(program, program, program, program, timeout_s=60)


def _scorer(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = library_scores.LibraryScorer(program, program, threads=1)
    scorer._run(program, program, program, 1)


def _trial_engine(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = CommandLine(argv=(str(program), HOST, PORT))
    with (
        pytest.raises(Exception, match="died"),
        serve(command, served_name="x", log=program.with_name("log")),
    ):
        pass


def _any_other(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([program], timeout_s=60)


def _probe(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CommandProbe(f"{program} {{batch}}", 60).measure(1, 1)


SHORT = (_uv, _image_packages, _converter, _comparison, _scorer, _trial_engine, _any_other, _probe)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("start", SHORT)
def test_short_children(
    start: Callable[[Path, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, seen = spy(tmp_path)
    start(program, monkeypatch)
    assert_none_in(json.loads(seen.read_bytes()))


@pytest.mark.usefixtures("secrets")
def test_a_users_own_probe_gets_what_the_user_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_PASS_ENV", "OPENAI_API_KEY")
    program, seen = spy(tmp_path)
    _probe(program, monkeypatch)
    assert json.loads(seen.read_bytes())["OPENAI_API_KEY"] == SECRETS["OPENAI_API_KEY"]
