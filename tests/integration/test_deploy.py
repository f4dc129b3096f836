"""`slipway deploy` as a user runs it: the first time, again, after damage, and with everything that can be wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from commands import SLIPWAY, Desk, Ended
from small_disk import small_disk_at

from blocks.prefect.server import TemporaryServer
from blocks.prefect.service_tag import service_tag
from blocks.processes.ports import free_port
from blocks.storage.record_store import FolderRecordStore
from tasks.core.files import file_lock
from tasks.core.release import ServiceFolder
from tasks.core.verdicts import StageName
from tasks.staging.ledger import LEDGER_FILE

pytestmark = [pytest.mark.engine, pytest.mark.server]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Iterator[Desk]:
    """A home in which the engine's environment gets built once."""
    desk = Desk(tmp_path_factory.mktemp("home"), prefect_api_url)
    yield desk
    for folder in desk.home.glob("services/*"):
        desk.run("stop", folder.name)
    desk.left_nothing_but([])


def write_spec(folder: Path, model: str | Path, **changes: Any) -> Path:
    """A spec that is quick to deploy."""
    source = model if isinstance(model, str) else f"file:{model}"
    spec = {
        "name": "quick",
        "model": source,
        "hardware": {"cpus": 1},
        "staging": {"shards": 2, "disk_benchmark": False},
        "tuning": {"candidates": ["f16"], "max_batch": 1, "context": 128, "output_tokens": 8},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def stages_of(answer: Any, *, cached: bool) -> set[str]:
    return {row["stage"] for row in answer["stages"] if row["cached"] is cached}


def test_deploy_repeat_damage_and_repair(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, random_model)
    ended = desk.deploy(spec)
    assert "] staging: " in ended.stderr
    assert "] rollout: " in ended.stderr
    first = ended.answer
    assert [row["verdict"] for row in first["stages"]] == [
        "sound",
        "pass",
        "verified",
        "chosen",
        "chosen",
        "serving",
        "healthy",
    ]
    body = {"model": "quick", "prompt": "The", "max_tokens": 4}
    answer = httpx.post(f"{first['endpoint']}/v1/completions", json=body, trust_env=False)
    assert answer.json()["usage"]["completion_tokens"] >= 1

    again = desk.deploy(spec).answer
    assert again["release"] == first["release"]
    assert {"environment", "staging", "quantization", "batching"} <= stages_of(again, cached=True)

    (staged,) = (desk.home / "models").iterdir()
    shards = sorted(staged.glob("*.safetensors"))
    assert len(shards) == 2
    untouched = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    repaired = desk.deploy(spec).answer
    assert "staging" in stages_of(repaired, cached=False)
    assert {"environment", "quantization", "batching"} <= stages_of(repaired, cached=True)
    assert shards[0].exists()
    assert shards[1].stat().st_mtime_ns == untouched
    assert repaired["release"] == first["release"]

    # What serves is deployed again without a server.
    store = FolderRecordStore(desk.home / "records")
    before = {stage: len(store.list(stage)) for stage in StageName}
    alone = {"PREFECT_API_URL": ""}
    again = desk.deploy(spec, env=alone)
    assert "starting a server" not in again.stderr
    assert again.answer["release"] == first["release"]
    assert stages_of(again.answer, cached=False) == {"health"}
    added = {stage for stage in StageName if len(store.list(stage)) == before[stage] + 1}
    assert added == {StageName.HEALTH, StageName.LIFECYCLE}
    assert store.list(StageName.LIFECYCLE)[-1].consulted == tuple(
        row["record"] for row in again.answer["stages"]
    )
    # What the records cannot say is found when the stage looks, and then a server is started after all.
    shards[0].unlink()
    repaired = desk.deploy(spec, env=alone)
    assert "starting a server" in repaired.stderr
    assert "staging" in stages_of(repaired.answer, cached=False)


def test_people_see_the_table_and_where_to_look_next(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    shown = desk.run("deploy", write_spec(tmp_path, random_model))
    assert shown.code == 0, shown.stderr
    for word in (
        "stage",
        "verdict",
        "key number",
        "endpoint",
        "completion",
        "look next",
        "slipway status quick",
    ):
        assert word in shown.stdout


# What can be wrong with a model -------------------------------------------------------------------


def broken_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def truncated(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_header, ["model.safetensors", "header"]),
        (truncated, ["model.safetensors"]),
        (pickled, ["pytorch_model.bin", "safetensors"]),
        (shutil.rmtree, ["no", "model"]),
    ],
    ids=["corrupt header", "truncated shard", "pickled weights", "missing model"],
)
def test_a_bad_model_is_one_line_and_nothing_is_half_done(
    desk: Desk, random_model: Path, tmp_path: Path, damage: Any, words: Sequence[str]
) -> None:
    model = shutil.copytree(random_model, tmp_path / "model")
    damage(model)
    before = desk.leftovers()
    ended = desk.deploy(write_spec(tmp_path, model, name="bad"))
    assert ended.code in (1, 2)
    for word in words:
        assert word in f"{ended.error} {ended.fix}"
    desk.left_nothing_but(before)
    assert ServiceFolder(desk.home / "services", "bad").state() is None


def test_an_unknown_key_is_wrong_use(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    ended = desk.deploy(write_spec(tmp_path, random_model, tunning={}))
    assert ended.code == 2
    assert "unknown key 'tunning'" in ended.error
    assert "did you mean 'tuning'?" in ended.stderr


def test_a_taken_port_is_named_and_nothing_is_started(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        spec = write_spec(tmp_path, random_model, name="taken", rollout={"port": port})
        before = desk.leftovers()
        ended = desk.deploy(spec)
        assert ended.code == 1
        assert str(port) in ended.error
        desk.left_nothing_but(before)


def test_a_full_disk_is_named(tmp_path: Path, random_model: Path, prefect_api_url: str) -> None:
    with small_disk_at(tmp_path / "disk", "20m") as disk:
        desk = Desk(disk / "home", prefect_api_url)
        ended = desk.deploy(write_spec(tmp_path, random_model, name="full"))
        assert ended.code == 1
        assert "room" in ended.error or "full" in ended.error
        desk.left_nothing_but([])


def test_an_engine_that_dies_shows_its_last_lines(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    """And the previous release goes on serving."""
    served = desk.deploy(write_spec(tmp_path, random_model)).answer
    (candidate,) = (desk.home / "candidates").iterdir()
    model = candidate / "model.gguf"
    whole = model.read_bytes()
    # The digest is checked before the start, so the damage is done to the engine instead.
    worker = next((desk.home / "environments").glob("*/lib/python3*/site-packages/xllamacpp/__init__.py"))
    source, times = worker.read_text(), worker.stat()
    # As a disk damages files: with the size and time of before, so that only digests tell.
    worker.write_text("raise SystemExit('the engine was damaged')\n".ljust(len(source.encode()), "#"))
    os.utime(worker, ns=(times.st_atime_ns, times.st_mtime_ns))
    for compiled in (worker.parent / "__pycache__").glob("__init__.*.pyc"):
        compiled.unlink()
    try:
        changed = write_spec(tmp_path, random_model, objectives={"memory_fraction": 0.8})
        ended = desk.deploy(changed)
        assert ended.code in (1, 3)
        assert "the engine was damaged" in ended.stderr + ended.stdout
        answer = httpx.get(f"{served['endpoint']}/health", trust_env=False)
        assert answer.status_code == 200
    finally:
        worker.write_text(source)
        assert model.read_bytes() == whole


def test_an_interrupted_deploy_ends_at_once_and_leaves_only_what_the_next_goes_on_with(
    tmp_path: Path, random_model: Path, prefect_api_url: str
) -> None:
    desk = Desk(tmp_path / "home", prefect_api_url)
    environment = {**os.environ, "SLIPWAY_HOME": str(desk.home), "PREFECT_API_URL": desk.api}
    command = [SLIPWAY, "deploy", write_spec(tmp_path, random_model, name="halted"), "--json"]
    with subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as deploy:
        assert deploy.stderr is not None
        assert any("environment: resolving" in line for line in deploy.stderr)
        deploy.send_signal(signal.SIGINT)
        said = deploy.stderr.read()
    assert deploy.returncode == 130, said
    assert "stopped" in said
    # A copy that was begun is kept with its ledger: of a large model that is hours.
    begun = [str(part) for part in desk.home.glob("models/*/*.part") if (part.parent / LEDGER_FILE).is_file()]
    desk.left_nothing_but(begun)


def test_no_network_while_locking_is_a_fault_that_may_pass(
    tmp_path: Path, random_model: Path, prefect_api_url: str
) -> None:
    desk = Desk(tmp_path / "home", prefect_api_url)
    nowhere = f"http://127.0.0.1:{free_port()}/simple"
    env = {"UV_DEFAULT_INDEX": nowhere, "UV_INDEX_URL": nowhere, "UV_CACHE_DIR": str(tmp_path / "cache")}
    env |= {"UV_HTTP_RETRIES": "0", "UV_FIND_LINKS": "", "UV_EXTRA_INDEX_URL": ""}
    ended = desk.deploy(write_spec(tmp_path, random_model, name="offline"), env=env)
    assert ended.code == 1
    assert "index" in ended.error
    desk.left_nothing_but([])


def test_target_docker_without_docker_says_so(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, random_model, name="boxed", target="docker")
    ended = desk.deploy(spec, env={"DOCKER_HOST": f"unix://{tmp_path / 'none.sock'}"})
    assert ended.code == 1
    assert "Docker" in ended.error
    assert ServiceFolder(desk.home / "services", "boxed").state() is None


def test_two_services_side_by_side_stop_and_status(desk: Desk, random_model: Path, tmp_path: Path) -> None:
    one = desk.deploy(write_spec(tmp_path / "a", random_model, name="one")).answer
    two = desk.deploy(write_spec(tmp_path / "b", random_model, name="one-more")).answer
    assert one["endpoint"] != two["endpoint"]
    assert desk.run("stop", "one").code == 0
    assert httpx.get(f"{two['endpoint']}/health", trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{one['endpoint']}/health", trust_env=False)
    assert "one-more" in desk.run("status").stdout
    assert desk.run("stop", "one-more").code == 0


def test_a_run_bears_its_service_before_it_has_the_lease(
    desk: Desk, random_model: Path, tmp_path: Path, prefect_server: TemporaryServer
) -> None:
    """Killed in its first moment, it is found by the next run all the same."""
    spec = write_spec(tmp_path, random_model, name="held")
    with file_lock(desk.home / "leases" / "service-held", wait=False, holder="this test"):
        refused = desk.deploy(spec)
    assert refused.error == "another run is already working on the service held"
    wanted = {"flow_runs": {"tags": {"all_": [service_tag("held")]}}}
    user, _, secret = prefect_server.key.partition(":")
    answer = httpx.post(f"{desk.api}/flow_runs/filter", json=wanted, auth=(user, secret), trust_env=False)
    runs = answer.json()
    assert [(run["name"], run["state_type"]) for run in runs] == [("deploy held", "FAILED")]


def test_tune_quantization_is_that_stage_alone(desk: Desk, examples: Path) -> None:
    def run(*changes: str, more: tuple[str, ...] = ()) -> Ended:
        options = (
            "staging.disk_benchmark=false",
            "tuning.candidates=[f16, q8_0]",
            "tuning.quality_tokens=256",
        )
        sets = [f"--set={option}" for option in (*options, *changes)]
        return desk.run("tune", "quantization", examples / "tiny" / "slipway.yaml", *sets, *more)

    first = run()
    assert first.code == 0, first.stderr
    assert "quantization: measuring q8_0" in first.stdout
    assert "perplexity" in first.stdout
    assert "quantization chosen: " in first.stdout.splitlines()[-1]

    answer = run(more=("--json",)).answer
    assert (answer["stage"], answer["verdict"], answer["cached"]) == ("quantization", "chosen", True)
    assert [row["format"] for row in answer["result"]["measured"]] == ["f16", "q8_0"]

    # The verdict of the stage before it ends the command too.
    refused = run("environment.requirements=['numpy<2']")
    assert refused.code == 3
    assert refused.stdout.splitlines()[-1].startswith("environment conflicting: ")

    wrong = run("tuning.quality_text=null")
    assert wrong.code == 2
    assert "cannot be compared without a text" in wrong.error
