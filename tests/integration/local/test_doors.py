"""The doors: a real server and a real worker; runs started as the UI does it, by a schedule, and by an event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from local_place import LocalPlace
from prefect_http import wait_for
from random_model import write_random_model

from tasks.core.release import ServiceFolder
from tasks.registry.models import EVENT

pytestmark = pytest.mark.server

FLOWS = (
    "build-environment",
    "check-health",
    "check-leaks",
    "compare-loaders",
    "deploy-model",
    "keep-running",
    "measure-disk",
    "quantize-model",
    "redeploy-model",
    "roll-out",
    "stage-model",
    "tune-serving",
    "verify-compatibility",
    "watch-registry",
)


def serving_version(place: LocalPlace, name: str) -> str | None:
    """The model version that a service serves."""
    folder = ServiceFolder(place.home / "services", name)
    state = folder.state()
    release = folder.release(state.release) if state else None
    return release.model_version if release else None


def test_up_registers_every_flow_and_twice_does_no_harm(place: LocalPlace) -> None:
    assert place.up["deployments"] == [f"{flow}/{flow}" for flow in FLOWS]
    assert place.json("up") == place.up
    assert len(place.api.client.post("/automations/filter", json={}).json()) == 2
    assert len(place.api.client.post("/work_pools/filter", json={}).json()) == 1


def test_a_form_is_typed_and_refuses_a_bad_value(place: LocalPlace) -> None:
    schema = place.api.deployment("deploy-model")["parameter_openapi_schema"]
    spec = schema["definitions"]["DeploySpec"]["properties"]
    assert schema["definitions"]["Target"]["enum"] == ["process", "docker"]
    assert spec["name"]["description"]
    assert schema["properties"]["spec"]["description"].startswith("what to deploy")
    answer = place.api.start("deploy-model", {"spec": {"name": "tiny", "model": "file:x", "target": "mars"}})
    assert answer.status_code == 409
    assert "mars" in answer.text


def test_a_run_started_as_the_ui_does_it(place: LocalPlace) -> None:
    run = place.api.run("verify-compatibility", {"request": {"engine": "llama.cpp"}})
    assert run["state_type"] == "COMPLETED", place.api.logs(run["id"])
    artifacts = place.api.client.post("/artifacts/filter", json={}).json()
    assert any(found["key"].startswith("compatibility-") for found in artifacts)


def test_a_power_cut_costs_no_deployment_its_turn(place: LocalPlace) -> None:
    """The slot is counted in the database; what would free it was in the memory of the server that is gone."""
    state = json.loads((place.home / "local.json").read_text())
    _kill(state["worker"]["pid"])
    started = place.api.start("redeploy-model", {"service": "nobody"}).json()["id"]
    wanted = {"state": {"type": "PENDING"}}
    assert place.api.client.post(f"/flow_runs/{started}/set_state", json=wanted).json()["status"] == "ACCEPT"
    _kill(state["server"]["pid"])
    assert place.json("up", "--port", place.port) == place.up
    killed = place.api.client.get(f"/flow_runs/{started}").json()
    assert killed["state_type"] == "CRASHED"
    assert killed["state"]["message"] == "its process was killed; found by the next `slipway up`"
    later = place.api.run("redeploy-model", {"service": "nobody"})
    assert later["state_type"] == "FAILED", "it had its turn: there is no such service"
    for run in (started, later["id"]):  # another test counts the redeploys
        place.api.client.delete(f"/flow_runs/{run}").raise_for_status()


def _kill(pid: int) -> None:
    """A process and what it started, without a word."""
    process = psutil.Process(pid)
    family = [*process.children(recursive=True), process]
    for one in family:
        one.kill()
    psutil.wait_procs(family)


@pytest.mark.engine
def test_a_promotion_redeploys_and_a_lost_event_is_made_good(place: LocalPlace) -> None:
    registry = place.home / "registry" / "m"
    for version in ("1", "2"):
        write_random_model(registry / "versions" / version, seed=int(version))
    alias = registry / "aliases" / "champion"
    alias.parent.mkdir()
    alias.write_text("1")
    spec = place.folder / "spec.yaml"
    spec.write_text(
        "name: chat\nmodel: models:/m@champion\nhardware: {cpus: 1}\nstaging: {disk_benchmark: false}\n"
        "tuning: {candidates: [f16], max_batch: 1, context: 128, output_tokens: 8}\n"
    )
    place.json("deploy", str(spec))
    try:
        assert serving_version(place, "chat") == "1"
        _promotion_is_followed(place, alias)
        _lost_event_is_made_good(place, alias)
        _service_answers(place, "chat")
    finally:
        place.json("stop", "chat")


def _look(place: LocalPlace, parameters: dict[str, Any]) -> None:
    """Look at the registry; again where the look was cancelled because a scheduled one was under way."""

    def look() -> dict[str, Any] | None:
        run = place.api.run("watch-registry", parameters)
        return run if run["state_type"] != "CANCELLED" else None

    run = wait_for(look, "a look that is not refused")
    assert run["state_type"] == "COMPLETED", place.api.logs(run["id"])


def _promotion_is_followed(place: LocalPlace, alias: Path) -> None:
    alias.write_text("2")
    _look(place, {})
    run = wait_for(lambda: next(iter(place.api.runs_of("redeploy-model")), None), "the redeploy's run")
    assert run["parameters"]["service"] == "chat"
    ended = place.api.ended(run["id"])
    assert ended["state_type"] == "COMPLETED", place.api.logs(run["id"])
    assert serving_version(place, "chat") == "2"


def _lost_event_is_made_good(place: LocalPlace, alias: Path) -> None:
    """The trigger is off when the alias moves: the event reaches nobody. The next look asks again."""
    automations = place.api.client.post("/automations/filter", json={}).json()
    trigger = next(found for found in automations if "redeploy" in found["name"])
    place.api.client.patch(f"/automations/{trigger['id']}", json={"enabled": False}).raise_for_status()
    alias.write_text("1")
    _look(place, {})
    wait_for(lambda: _announced(place) == 2 or None, "the event that nobody follows")
    assert len(place.api.runs_of("redeploy-model")) == 1
    place.api.client.patch(f"/automations/{trigger['id']}", json={"enabled": True}).raise_for_status()
    _look(place, {"grace_s": 0})

    def look() -> dict[str, Any] | None:
        runs = place.api.runs_of("redeploy-model")
        return runs[0] if len(runs) == 2 else None

    ended = place.api.ended(wait_for(look, "the second redeploy")["id"])
    assert ended["state_type"] == "COMPLETED", place.api.logs(ended["id"])
    assert serving_version(place, "chat") == "1"


def _announced(place: LocalPlace) -> int:
    """Events that the server has seen and stored; its triggers have seen them by then."""
    asked = {"filter": {"event": {"name": [EVENT]}}}
    answer = place.api.client.post("/events/filter", json=asked)
    answer.raise_for_status()
    return int(answer.json()["total"])


def _service_answers(place: LocalPlace, name: str) -> None:
    state = ServiceFolder(place.home / "services", name).state()
    assert state is not None
    body = {"model": name, "prompt": "a", "max_tokens": 2}
    answer = httpx.post(f"{state.endpoint}/v1/completions", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200


def test_a_scheduled_run_comes_by_itself(place: LocalPlace) -> None:
    deployment = place.api.deployment("watch-registry")
    assert [schedule["slug"] for schedule in deployment["schedules"]] == ["every-five-minutes"]
    # Often enough that a slow scheduler still finds the next time ahead of it.
    schedule = {"schedule": {"interval": 20}, "active": True, "slug": "often"}
    schedules = f"/deployments/{deployment['id']}/schedules"
    answer = place.api.client.post(schedules, json=[schedule])
    assert answer.status_code == 201, answer.text

    def look() -> dict[str, Any] | None:
        ended = [run for run in place.api.runs_of("watch-registry") if run["state_type"] == "COMPLETED"]
        return next((run for run in ended if run["auto_scheduled"]), None)

    assert wait_for(look, "a scheduled run")
    place.api.client.delete(f"{schedules}/{answer.json()[0]['id']}").raise_for_status()
