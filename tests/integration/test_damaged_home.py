"""Each kind of file in the home, damaged in each way: its next use heals it, or one line names a way out that works.

What belongs to services and to Prefect is damaged elsewhere; this is all the rest.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import home_at

from blocks.engine.trial import EnvironmentTrial
from blocks.expectations.fact_contract import FactContract
from blocks.packages.uv import Uv
from blocks.processes.started_process import StartedProcess
from blocks.storage.model_source import FolderSource
from blocks.storage.record_store import FolderRecordStore
from deployments.local_state import LocalState, read_local_state, write_local_state
from tasks.core.disk_faults import disk_fault
from tasks.core.errors import SlipwayError
from tasks.core.files import file_lock
from tasks.core.manifest import verify
from tasks.core.records import new_record
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import StageName
from tasks.environment import apply as environment
from tasks.environment.integrity import NOTE
from tasks.environment.models import Built, Locked
from tasks.environment.plan import make_lock_request
from tasks.quantization.apply import make_candidate
from tasks.quantization.models import QuantizationRequest
from tasks.staging.apply import plan_copy, stage_model
from tasks.staging.source import pin


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00{" * 100)


def missing(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES = (empty, half, garbage, missing, folder_instead)


def file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


# What uses each kind of file: done twice it gives the same answer.


def lock(settings: Settings, model: Path) -> Any:
    uv = Uv()
    request = make_lock_request(("idna==3.10", "six==1.16.0"), uv.platform, Environment(python="3.11"))
    locked = environment.lock(request, uv, settings)
    assert isinstance(locked, Locked)
    return locked


def build(settings: Settings, model: Path) -> Any:
    built = environment.build(lock(settings, model), Uv(), EnvironmentTrial(), settings)
    assert isinstance(built, Built)
    assert EnvironmentTrial().alive(built.python_path)
    return built.packages


def stage(settings: Settings, model: Path) -> Any:
    folder = settings.models / "model"
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 2, convertible=True)
    staged = stage_model(pinned, plan, folder, leases=settings.leases, own=True)
    assert verify(folder) == (staged.manifest, ())
    return staged.manifest


class Converter:
    """Copies a byte of the model: how candidates are really made is tested elsewhere."""

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        out.write_text(f"{form}" * 100)


def make(settings: Settings, model: Path) -> Any:
    asked = QuantizationRequest(
        model_dir=model,
        model_digest="sha256:" + "a" * 64,
        formats=(CandidateFormat.F16,),
        text=None,
        tokens=64,
        context=64,
        tolerance=0.01,
    )
    bench: Any = Converter()
    candidate = make_candidate(asked, CandidateFormat.F16, bench, settings)
    assert candidate.path.read_text() == "f16" * 100
    return candidate


def record(settings: Settings, model: Path) -> Any:
    store = FolderRecordStore(settings.home / "records")
    store.put(
        new_record(
            stage=StageName.STAGING,
            subject="tiny",
            host_fingerprint="sha256:h",
            inputs_digest="sha256:i",
            outcome="verified",
            seconds=1,
        )
    )
    return {one.outcome for one in store.with_inputs(StageName.STAGING, "sha256:i")}


def check_tables(settings: Settings, model: Path) -> Any:
    found = FactContract(settings).check()
    assert Path(found.page).read_text().startswith("<!")
    return found.tables


def lease(settings: Settings, model: Path) -> Any:
    with file_lock(settings.service_lease("tiny"), wait=False, holder="the service tiny"):
        return True


def start_server(settings: Settings, model: Path) -> Any:
    state = read_local_state(settings) or LocalState(
        api_url="http://127.0.0.1:1/api", server=StartedProcess(pid=1, boot_id="", start_ticks=0)
    )
    write_local_state(settings, state)
    return state


Use = Callable[[Settings, Path], Any]
FILES: dict[str, Use] = {
    "locks/*.txt": lock,
    "environments/*/slipway-environment.json": build,
    "environments/*/slipway-environment.lock": build,
    f"environments/*/{NOTE}": build,
    "environments/*/slipway-used": build,
    "environments/*/pyvenv.cfg": build,
    "environments/*/lib/python*/site-packages/idna/core.py": build,
    "environments/*/lib/python*/site-packages/idna-3.10.dist-info/RECORD": build,
    "models/model/manifest.json": stage,
    "models/model/config.json": stage,
    "models/model/model-00001-of-00002.safetensors": stage,
    "candidates/*/candidate.json": make,
    "candidates/*/model.gguf": make,
    "records/staging/*.json": record,
    "tables/*/check.json": check_tables,
    "tables/*/index.html": check_tables,
    "leases/service-tiny": lease,
    "local.json": start_server,
}
FOLDERS: dict[str, Use] = {
    "locks": lock,
    "environments": build,
    "environments/*": build,
    "models": stage,
    "models/model": stage,
    "candidates": make,
    "candidates/*": make,
    "records": record,
    "records/staging": record,
    "tables": check_tables,
    "tables/*": check_tables,
    "leases": lease,
}


def damages(number: int, use: Use, of_files: bool) -> tuple[Callable[[Path], None], ...]:
    """What is done to the file or folder of that number: everything, or by turns where the use takes seconds."""
    if not of_files:
        both = (file_instead, shutil.rmtree)
        return both if use is not check_tables else both[number % 2 :][:1]
    if use is check_tables:
        return (half, folder_instead)[number % 2 :][:1]
    return (DAMAGES[number % 4], folder_instead) if use is build else DAMAGES


CASES = [
    (pattern, use, damage)
    for patterns in (FILES, FOLDERS)
    for number, (pattern, use) in enumerate(patterns.items())
    for damage in damages(number, use, patterns is FILES)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[Callable[[Use], Any]]:
    """Puts the home back as a use leaves it, which is made once; gives that use's answer."""
    place, answers = tmp_path_factory.mktemp("prepared"), {}
    with home_at(place / "home") as home:

        def put_back(use: Use) -> Any:
            shutil.rmtree(home, ignore_errors=True)
            kept = place / use.__name__
            if use in answers:
                shutil.copytree(kept, home, symlinks=True)
            else:
                answers[use] = use(Settings.load(), random_model)
                shutil.copytree(home, kept, symlinks=True)
            return answers[use]

        yield put_back


def carry_out(fix: str | None) -> None:
    """The command that an error gives as its way out."""
    found = re.search(r"mv \S+ \S+", fix or "")
    assert found, f"no command in {fix!r}"
    subprocess.run(shlex.split(found[0]), check=True)


@pytest.mark.parametrize(
    ("pattern", "use", "damage"), CASES, ids=[f"{pattern}-{damage.__name__}" for pattern, _, damage in CASES]
)
def test_what_is_damaged_is_healed_or_has_a_way_out(
    pattern: str,
    use: Use,
    damage: Callable[[Path], None],
    prepared: Callable[[Use], Any],
    random_model: Path,
) -> None:
    before = prepared(use)
    settings = Settings.load()
    found = sorted(settings.home.glob(pattern))
    if not found:
        use(settings, random_model)
        (*found,) = settings.home.glob(pattern)
    assert found, f"nothing is at {pattern}"
    damage(found[0])
    try:
        after = use(settings, random_model)
    except (SlipwayError, OSError) as error:
        # As stages and commands say what the system says.
        fault = disk_fault(error) if isinstance(error, OSError) else error
        assert fault is not None
        assert str(found[0]) in fault.what
        carry_out(fault.fix)
        after = use(settings, random_model)
    assert after == before
    assert use(settings, random_model) == before
    assert not list(settings.home.rglob("*.part"))
