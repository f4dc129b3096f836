"""The environment stage's artifact and figures."""

from __future__ import annotations

from pathlib import Path

from inline_snapshot import snapshot

from tasks.core.verdicts import EnvironmentVerdict
from tasks.environment import report
from tasks.environment.models import (
    Conflict,
    Dependency,
    EngineProof,
    EnvironmentResult,
    ImportProof,
    Proof,
)

FLAGGED = EnvironmentResult(
    verdict=EnvironmentVerdict.FLAGGED,
    reason="requests requires urllib3>=1.26,<3, but urllib3 1.20 is installed",
    lock_path=Path("/locks/a.txt"),
    lock_digest="sha256:abc",
    environment_path=Path("/environments/a"),
    python_path=Path("/environments/a/bin/python"),
    python_version="3.11.7",
    engine_version="1.0",
    packages={"urllib3": "1.20", "requests": "2"},
    conflicts=(
        Conflict(package="urllib3", required_by="requests", requirement="urllib3>=1.26,<3", installed="1.20"),
    ),
    dependencies=(
        Dependency(package="urllib3", required_by="requests", requirement="urllib3>=1.26,<3"),
        Dependency(package="requests", required_by="gguf", requirement="requests>=2"),
    ),
    proof=Proof(
        imports=(ImportProof(module="gguf", ok=True, seconds=0.25),),
        engine=EngineProof(ok=True, start_s=0.125, completion="a|b", output_tokens=8),
    ),
    size_bytes=160_000_000,
    lock_s=0.5,
    build_s=1.5,
)
SOUND = FLAGGED.model_copy(update={"verdict": EnvironmentVerdict.SOUND, "reason": None, "conflicts": ()})
REFUSED = EnvironmentResult(
    verdict=EnvironmentVerdict.CONFLICTING,
    reason="Because you require numpy>=2 and numpy<1, your requirements are unsatisfiable. " * 4,
    conflicts=(Conflict(package="numpy", requirement="numpy>=2"),),
)


def test_the_headline_is_short() -> None:
    assert report.headline(SOUND) == snapshot("2 packages, 160 MB, engine 1.0 starts in 0.12 s")
    assert report.headline(FLAGGED) == FLAGGED.reason
    assert len(report.headline(REFUSED)) == 200


def test_the_artifact_of_a_flagged_environment() -> None:
    assert report.markdown(FLAGGED) == snapshot("""\
# Environment: flagged

requests requires urllib3>=1.26,&lt;3, but urllib3 1.20 is installed.

## Conflicts

| package | required by | as | installed |
|---|---|---|---|
| urllib3 | requests | urllib3>=1.26,&lt;3 | 1.20 |

What requires urllib3:

- requests requires urllib3>=1.26,&lt;3
  - gguf requires requests>=2

What to do: loosen or remove one of these requirements under `environment.requirements`.

## Proof

| step | outcome | time |
|---|---|---:|
| import gguf | works | 0.25 s |
| engine to first completion | 8 tokens | 0.12 s |

## What it is

| fact | value |
|---|---|
| Python | 3.11.7 |
| folder | `/environments/a` |
| lock | `abc` |
| size | 160 MB |
| time to lock | 0.5 s |
| time to build | 1.5 s |

## Packages

| package | version |
|---|---|
| requests | 2 |
| urllib3 | 1.20 |
""")


def test_the_artifact_of_a_refusal_names_who_asks() -> None:
    text = report.markdown(REFUSED)
    assert "| numpy | you | numpy>=2 | none |" in text
    assert "Proof" not in text


def test_an_engine_that_does_not_start_is_told() -> None:
    proof = Proof(
        imports=(ImportProof(module="gguf", ok=False, seconds=0, reason="a|b"),),
        engine=EngineProof(ok=False, reason="it died"),
    )
    text = report.markdown(SOUND.model_copy(update={"proof": proof}))
    assert "| import gguf | a\\|b | 0.00 s |" in text
    assert "| engine to first completion | it died | 0.00 s |" in text


def test_figures_are_those_of_this_run() -> None:
    assert {key: (one.value, one.unit) for key, one in report.numbers(SOUND).items()} == snapshot(
        {
            "conflicts": (0.0, "count"),
            "lock": (0.5, "s"),
            "packages": (2.0, "count"),
            "build": (1.5, "s"),
            "size": (160000000.0, "B"),
            "imports": (0.25, "s"),
            "engine_start": (0.125, "s"),
        }
    )
    assert set(report.numbers(REFUSED)) == {"conflicts", "lock"}
    assert "engine_start" not in report.numbers(SOUND.model_copy(update={"proof": Proof(imports=())}))


def test_a_result_survives_the_record() -> None:
    assert EnvironmentResult.model_validate(FLAGGED.model_dump(mode="json")) == FLAGGED
