"""Every parameter of every deployment by which a program could be chosen is held to the administrator's list."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from pydantic import BaseModel
from random_model import write_random_model
from releases import make_release

from blocks.prefect import asked_by_api
from blocks.services.kept_code import SCRIPTS, keep_script
from flows.build_environment import build_environment
from flows.deploy_model import deploy_model
from flows.quantize_model import quantize_model
from flows.roll_out import roll_out
from flows.stage_model import stage_model
from flows.tune_serving import tune_serving
from flows.verify_compatibility import verify_compatibility
from tasks.compatibility.models import CompatibilityRequest
from tasks.core.errors import SlipwayError, WrongUseError
from tasks.core.release import Launch, Release
from tasks.core.serving import ChatTemplate
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Serving
from tasks.engines.catalogue import get_engine
from tasks.engines.launches import check_launch
from tasks.environment.models import EnvironmentRequest
from tasks.staging.models import StagingRequest
from tasks.tuning.models import TuningRequest

HELD = {
    "environment.path",
    "environment.wheels",
    "request.python_path",
    "request.to",
    "release.environment_path",
    "release.lock_path",
    "release.launch.argv",
    "release.launch.env",
    "serving.chat_template",
    "release.config.chat.file",
}
"""Paths, and words of a command, that lead to what is run, or is shown to users."""

READ_ONLY = {
    "tuning.quality_text",
    "tuning.task_set",
    "tuning.calibration_text",
    "request.model_dir",
    "request.baseline_dir",
    "request.folder",
    "release.launch.model_file",
}
"""Paths to what is read and measured. Model files are parsed; code among them is run only if it is trusted."""


TORCH = {"torch": "2.13.0"}
"""An environment's Python is asked about it."""


def paths_in(hint: Any, key: str) -> Iterator[str]:
    """Keys below a parameter whose values are paths, and those of a command line."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        for name, field in hint.model_fields.items():
            yield from paths_in(field.annotation, f"{key}.{name}")
    elif hint is Path or key.endswith((".argv", ".env")):
        yield key
    else:
        for argument in get_args(hint):
            yield from paths_in(argument, key)


def test_every_path_of_every_deployment_is_either_held_or_only_read(repository: Path) -> None:
    """A new one fails here until somebody decides which it is."""
    deployments = yaml.safe_load((repository / "deployments" / "prefect.yaml").read_text())["deployments"]
    found = set()
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        function = getattr(importlib.import_module(module), name).fn
        for parameter, hint in get_type_hints(function).items():
            if parameter != "return":
                found |= set(paths_in(hint, parameter))
    sections = ("environment.", "tuning.", "serving.")
    short = {next((key[key.index(part) :] for part in sections if part in key), key) for key in found}
    assert short == HELD | READ_ONLY


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker runs a deployment. That it is told apart is tested with a real worker."""
    for module in ("blocks.prefect.asked_by_api", "flows.roll_out"):
        monkeypatch.setattr(importlib.import_module(module), "is_asked_by_api", lambda: True)


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """An environment whose Python says that it ran."""
    python = tmp_path / "strange" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    python.chmod(0o755)
    return python


def spec_of(**keys: Any) -> DeploySpec:
    return DeploySpec.model_validate({"name": "tiny", "model": "file:/nowhere", **keys})


def release_of(python: Path, **changes: Any) -> Release:
    model = write_random_model(python.parent.parent / "model") / "config.json"
    release = make_release(python, model)
    release = release.model_copy(update={"launch": launch_of(release)})
    launch = release.launch.model_copy(
        update={key: value for key, value in changes.items() if key != "release"}
    )
    return release.model_copy(update={"launch": launch, **changes.get("release", {})})


def launch_of(release: Release) -> Launch:
    """As a deploy writes it: the engine is started by the home's own copy of its script."""
    engine = get_engine(release.engine)
    assert engine.server_worker is not None
    worker = keep_script(asked_by_api.Settings.load().home, engine.server_worker)
    argv = [str(worker) if word == str(engine.server_worker) else word for word in release.launch.argv]
    return release.launch.model_copy(update={"argv": tuple(argv)})


def showing(file: str) -> Release:
    """A release whose engine shows a file of the host to its users as its chat template."""
    python = asked_by_api.Settings.load().environments / "e" / "bin" / "python"
    release = release_of(python)
    chat = ChatTemplate(digest="sha256:" + "a" * 64, file=Path(file))
    argv = (*release.launch.argv, "--chat-template", file)
    return release.model_copy(
        update={
            "config": release.config.model_copy(update={"chat": chat}),
            "launch": release.launch.model_copy(update={"argv": argv}),
        }
    )


def with_own_script(release: Release) -> Release:
    """Its engine is started by a script of the same name elsewhere."""
    argv = tuple(
        f"/tmp/{word.rpartition('/')[2]}" if word.endswith(".py") else word for word in release.launch.argv
    )
    return release.model_copy(update={"launch": release.launch.model_copy(update={"argv": argv})})


def with_own_options(release: Release, **options: Any) -> Release:
    """Its engine gets these, by a command as a deploy would write it, in an environment that Slipway built."""
    settings = asked_by_api.Settings.load()
    config = release.config.model_copy(update=options)
    engine, python = get_engine(release.engine), settings.environments / "e" / "bin" / "python"
    worker = next(word for word in release.launch.argv if word.endswith(".py"))
    command = engine.command(str(python), worker, str(release.launch.model_file), config)
    return release.model_copy(
        update={
            "config": config,
            "environment_path": python.parent.parent,
            "lock_path": settings.locks / "e.txt",
            "launch": release.launch.model_copy(update={"argv": command.argv, "env": dict(command.env)}),
        }
    )


def tuning_of(python: Path) -> TuningRequest:
    return TuningRequest(
        name="tiny",
        engine=EngineKind.LLAMA_CPP,
        python_path=python,
        environment_digest="sha256:e",
        model_dir=python.parent,
        model_digest="sha256:m",
    )


ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an environment of the system's": (
        lambda python: build_environment(
            EnvironmentRequest.model_validate(
                {"environment": {"manager": "system", "path": python.parent.parent}}
            )
        ),
        "request.environment.path",
    ),
    "a folder of wheels": (
        lambda python: build_environment(
            EnvironmentRequest.model_validate({"environment": {"wheels": python.parent}})
        ),
        "request.environment.wheels",
    ),
    "a requirement with a path": (
        lambda python: build_environment(
            EnvironmentRequest.model_validate({"environment": {"requirements": [f"x @ file://{python}.whl"]}})
        ),
        "request.environment.requirements",
    ),
    "a deploy": (
        lambda python: deploy_model(spec_of(environment={"manager": "system", "path": python.parent.parent})),
        "environment.path",
    ),
    "a deploy on a base image": (
        lambda _: deploy_model(spec_of(target="docker", rollout={"base_image": "evil.example/x:1"})),
        "rollout.base_image",
    ),
    "a deploy with a file to show": (
        lambda _: deploy_model(spec_of(serving={"chat_template": "/etc/passwd"})),
        "serving.chat_template",
    ),
    "a deploy of a model whose code is run": (
        lambda _: deploy_model(spec_of(serving={"trust_remote_code": True})),
        "serving.trust_remote_code",
    ),
    "a tuning of a model whose code is run": (
        lambda _: tune_serving(
            tuning_of(asked_by_api.Settings.load().environments / "e" / "bin" / "python").model_copy(
                update={"serving": Serving(trust_remote_code=True), "model_dir": Path("/nowhere")}
            )
        ),
        "request.serving.trust_remote_code",
    ),
    "a release of a model whose code is run": (
        lambda python: roll_out(
            with_own_options(release_of(python), remote_code={"modeling.py": "sha256:0"})
        ),
        "release.launch.model_file",
    ),
    "a deploy with an argument that loads code": (
        lambda _: deploy_model(spec_of(engine="vllm", engine_args={"middleware": ["os.system"]})),
        "engine_args",
    ),
    "a deploy with a variable that loads code": (
        lambda _: deploy_model(spec_of(engine_env={"VLLM_PLUGINS": "evil"})),
        "engine_env",
    ),
    "a tuning with a variable that loads code": (
        lambda _: tune_serving(
            tuning_of(asked_by_api.Settings.load().environments / "e" / "bin" / "python").model_copy(
                update={"engine_env": {"VLLM_PLUGINS": "evil"}}
            )
        ),
        "request.engine_env",
    ),
    "a quantization": (
        lambda python: quantize_model(
            spec_of(environment={"manager": "system", "path": python.parent.parent})
        ),
        "environment.path",
    ),
    "a survey": (
        lambda python: verify_compatibility(
            CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages=TORCH, python_path=python)
        ),
        "request.python_path",
    ),
    "a survey by a way round": (
        lambda python: verify_compatibility(
            CompatibilityRequest(
                engine=EngineKind.LLAMA_CPP,
                packages=TORCH,
                python_path=asked_by_api.Settings.load().environments / ".." / ".." / "strange" / "bin" / "python",
            )
        ),
        "request.python_path",
    ),
    "a tuning": (lambda python: tune_serving(tuning_of(python)), "request.python_path"),
    "a copy to anywhere": (
        lambda python: stage_model(StagingRequest(model="file:/nowhere", to=python.parent)),
        "request.to",
    ),
    "a copy into an environment": (
        lambda _: stage_model(
            StagingRequest(model="file:/nowhere", to=asked_by_api.Settings.load().environments / "e")
        ),
        "request.to",
    ),
    "a release of a strange environment": (
        lambda python: roll_out(release_of(python)),
        "release.environment_path",
    ),
    "a release with a command of its own": (
        lambda python: roll_out(release_of(python, argv=(str(python), "-c", "print()"))),
        "the release's command is not the one",
    ),
    "a release with a script of its own": (
        lambda python: roll_out(with_own_script(release_of(python))),
        "the release's command is not the one",
    ),
    "a release with variables of the spec's own": (
        lambda python: roll_out(with_own_options(release_of(python), engine_env={"VLLM_PLUGINS": "evil"})),
        "release.config.engine_env",
    ),
    "a release with variables of its own": (
        lambda python: roll_out(release_of(python, env={"LD_PRELOAD": "/tmp/x.so"})),
        "the release's command is not the one",
    ),
    "a release that shows a file": (
        lambda _: roll_out(showing("/etc/passwd")),
        "release.config.chat.file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_a_run_asked_for_by_api_starts_no_strange_program(
    attack: str, asked: None, strange: Path, slipway_home: Path, tmp_path: Path
) -> None:
    run, named = ATTACKS[attack]
    with pytest.raises(WrongUseError) as caught:
        run(strange)
    assert caught.value.what.startswith(named)
    assert not (tmp_path / "ran").exists()
    assert not (slipway_home / "services").exists()


def test_a_release_as_a_deploy_makes_it_is_not_refused_for_its_command(
    slipway_home: Path, strange: Path
) -> None:
    check_launch(release_of(strange), asked_by_api.Settings.load().home / SCRIPTS)


UNFIT: dict[str, dict[str, Any]] = {
    r"engine_args\.host: Slipway sets --host": {"engine_args": {"host": "0.0.0.0"}},
    r"engine_env: LD_PRELOAD is set by Slipway": {"engine_env": {"LD_PRELOAD": "/x.so"}},
}


@pytest.mark.parametrize("said", list(UNFIT))
def test_a_release_has_no_arguments_that_a_spec_may_not_have(
    said: str, slipway_home: Path, strange: Path
) -> None:
    release = with_own_options(release_of(strange), **UNFIT[said])
    with pytest.raises(SlipwayError, match=said):
        check_launch(release, asked_by_api.Settings.load().home / SCRIPTS)


def test_listed_variables_and_arguments_may_be_given(asked: None, slipway_home: Path) -> None:
    spec = spec_of(engine="vllm", engine_args={"seed": 1, "max_logprobs": 5}, engine_env={"A": "1"})
    slipway_home.mkdir()
    file = slipway_home / asked_by_api.FILE
    file.write_text('arguments = ["seed", "max-logprobs"]\nvariables = ["A"]\n')
    asked_by_api.check_programs(asked_by_api.programs_of_spec(spec))
    file.write_text('arguments = ["seed"]\nvariables = ["A"]\n')
    with pytest.raises(
        WrongUseError, match="engine_args is max-logprobs, which a run requested through the API"
    ):
        asked_by_api.check_programs(asked_by_api.programs_of_spec(spec))


def _run_what_says_nothing(python: Path) -> None:
    """Its Python is asked for its packages, and prints none."""
    with pytest.raises(SlipwayError) as caught:
        ATTACKS["an environment of the system's"][0](python)
    assert "may not use" not in caught.value.what


def test_what_is_listed_may_be_started(
    asked: None, strange: Path, slipway_home: Path, tmp_path: Path
) -> None:
    slipway_home.mkdir()
    (slipway_home / asked_by_api.FILE).write_text(f'folders = ["{tmp_path}"]\n')
    _run_what_says_nothing(strange)
    assert (tmp_path / "ran").exists()


def test_a_link_out_of_a_listed_folder_leads_nowhere(
    asked: None, strange: Path, slipway_home: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "link").symlink_to(strange.parent.parent)
    slipway_home.mkdir()
    (slipway_home / asked_by_api.FILE).write_text(f'folders = ["{listed}"]\n')
    with pytest.raises(WrongUseError, match="may not use"):
        ATTACKS["an environment of the system's"][0](listed / "link" / "bin" / "python")
    assert not (tmp_path / "ran").exists()


def survey(python: Path) -> Any:
    request = CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages=TORCH, python_path=python)
    return verify_compatibility(request)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("~nosuch/bin/python", "the user 'nosuch' does not exist"),
        ("loop/bin/python", "loop"),
        ("a\0b/bin/python", "contains a control character"),
        ("a" * 300 + "/bin/python", "longer than 255 bytes"),
    ],
    ids=["strange user", "loop of links", "control character", "long name"],
)
def test_a_path_that_cannot_be_is_refused_in_one_line(
    python: str, said: str, asked: None, slipway_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WrongUseError, match=said):
        survey(Path(python if python.startswith("~") else tmp_path / python))


def not_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")


def a_folder(file: Path) -> None:
    file.mkdir()


def a_loop_in_it(file: Path) -> None:
    (file.parent / "loop").symlink_to("loop")
    file.write_text(f'folders = ["{file.parent}/loop"]')


@pytest.mark.parametrize("put", [not_text, a_folder, a_loop_in_it])
def test_a_list_that_cannot_be_used_is_named_and_allows_nothing(
    put: Callable[[Path], None], asked: None, strange: Path, slipway_home: Path, tmp_path: Path
) -> None:
    slipway_home.mkdir()
    put(slipway_home / asked_by_api.FILE)
    with pytest.raises(WrongUseError) as caught:
        survey(strange)
    assert str(slipway_home) in caught.value.what
    assert not (tmp_path / "ran").exists()


def test_a_command_at_a_terminal_is_not_held(strange: Path, slipway_home: Path, tmp_path: Path) -> None:
    _run_what_says_nothing(strange)
    assert (tmp_path / "ran").exists()
