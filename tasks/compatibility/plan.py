"""The judgement: which rules apply to a host, and what they add up to (docs/facts.md). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.compatibility.conditions import GPU, PACKAGE, Answer, Subject, Value, any_holds, evaluate
from tasks.compatibility.models import (
    CompatibilityRequest,
    CompatibilityResult,
    Finding,
    KnownBad,
    Measurement,
    Survey,
    TableCheck,
    TablesCheck,
)
from tasks.compatibility.rules import PLACEHOLDER, Rule, Tables, load_tables
from tasks.compatibility.subject import build_sightings, cuda_build_of, describe, find_engine
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict

DECIDING = ("driver", "cuda_build", "gpus")
"""Without one of these the answer is never `pass`."""

_ORDER = ("block", "warn", "unknown", "info", "pass")

_HOW_TO_KNOW = {
    "driver": "run `slipway survey` on the host, or give `driver` as NVML reports it; null if none",
    "cuda_build": "give the CUDA version of the environment's packages (torch.version.cuda); null if none",
    "gpus": "run `slipway survey` on the host, or give `gpus`; [] if there are none",
    "container_gpus": "start Docker and run `slipway survey`, or give `container_gpus`; [] without a way",
    "container_toolkit": "give the version that `nvidia-ctk --version` prints; null if it is not installed",
    "platform": "give `cpu`, such as `aarch64` or the processor's name: torch's wheels differ by it",
    "gpu.compute_capability": "give `compute_capability` of each GPU",
    "gpu.forward_compat": "look the GPU up in NVIDIA's list of GPUs with forward compatibility",
}


def judge(
    survey: Survey, measurements: Sequence[Measurement] = (), tables: Tables | None = None
) -> CompatibilityResult:
    """The verdict on a host and what is to run there, with every reason for it."""
    tables = tables or load_tables()
    facts = survey.facts
    subject = describe(survey, tables)
    applying: dict[str, tuple[Rule, Answer]] = {}
    unjudged: dict[str, list[str]] = defaultdict(list)
    for rule in tables.rules:
        answer = evaluate(rule.when, subject)
        if answer.holds is False or any_holds(rule.unless, subject):
            continue
        if answer.holds:
            applying[rule.id] = (rule, answer)
        else:
            for field in answer.missing:
                unjudged[_base(field)].append(rule.id)
    findings = [
        *_measured(measurements),
        *_found(applying, subject, measurements),
        *_not_known(facts, subject, unjudged),
        *_unlisted_engine(facts, tables),
    ]
    findings.sort(key=lambda finding: (_ORDER.index(finding.severity), finding.precedence, finding.rule))
    return CompatibilityResult(
        verdict=combine(findings), findings=tuple(findings), facts=facts, sightings=survey.sightings
    )


def known_bad(
    packages: Mapping[str, str], measurements: Sequence[Measurement] = (), tables: Tables | None = None
) -> tuple[KnownBad, ...]:
    """Combinations among these packages that are known to fail on any host: rules that depend on nothing else.

    Block and warn only. A measurement that proves more than a rule knows weakens it, as in `judge`.
    """
    tables = tables or load_tables()
    about_packages = [rule for rule in tables.rules if _is_about_packages(rule)]
    engines: list[str | None] = [
        row.name for row in tables.engines if not {row.name, *row.aliases}.isdisjoint(packages)
    ]
    found: dict[str, KnownBad] = {}
    for engine in engines or [None]:
        subject = describe(Survey(facts=Facts(packages=dict(packages), engine=engine)), tables)
        for rule in about_packages:
            answer = evaluate(rule.when, subject)
            if answer.holds and not any_holds(rule.unless, subject):
                (finding,) = _found({rule.id: (rule, answer)}, subject, measurements) or (None,)
                if finding is not None and finding.severity in ("block", "warn"):
                    named = next(field for field in rule.when if field.startswith(PACKAGE))
                    package = named.removeprefix(PACKAGE)
                    found[rule.id] = KnownBad(package=package, finding=finding)
    return tuple(found.values())


def _is_about_packages(rule: Rule) -> bool:
    fields = rule.when.keys() | rule.unless.keys()
    own = {field for field in fields if field.startswith(PACKAGE)}
    return bool(own & rule.when.keys()) and fields - own <= {"engine", "engine_version"}


def combine(findings: Iterable[Finding]) -> CompatibilityVerdict:
    """The first of block, warn and unknown that occurs among the findings, else pass. A P3 row warns at most."""
    said = {
        "warn" if finding.severity == "block" and finding.precedence == "P3" else finding.severity
        for finding in findings
    }
    for verdict in (CompatibilityVerdict.BLOCK, CompatibilityVerdict.WARN, CompatibilityVerdict.UNKNOWN):
        if verdict.value in said:
            return verdict
    return CompatibilityVerdict.PASS


def with_table_check(result: CompatibilityResult, check: TablesCheck) -> CompatibilityResult:
    """The result with the check of its tables. A broken contract blocks: the tables are part of the program, so they
    were damaged on this host, and neither a pass nor a way out made from them means anything."""
    broken = [_broken(table) for table in check.broken]
    if not broken:
        return result.model_copy(update={"tables": check})
    findings = (*broken, *result.findings)
    return result.model_copy(
        update={"verdict": combine(findings), "findings": findings, "ways_out": (), "tables": check}
    )


def _broken(table: TableCheck) -> Finding:
    first, more = table.breaches[0], len(table.breaches) - 1
    named = f"{first.column}: " if first.column else ""
    rest = f", and {more} more" if more else ""
    return Finding(
        rule=f"FACT-TABLE-{table.table.upper()}",
        severity="block",
        precedence="P0",
        message=(
            f"the fact table of {table.table} breaks its contract: {named}{first.expectation}: "
            f"{first.observed}{rest}"
        ),
        fix=(
            "reinstall Slipway (`slipway compat tables` lists the breaches); if a date is in the future, "
            "set this host's clock"
        ),
        sources=("tasks/compatibility/data/contract.toml", "measured on this host"),
    )


def complete(request: CompatibilityRequest, survey: Survey) -> Survey:
    """The survey with what is to run on the host."""
    return run_on(
        survey,
        request.packages,
        cuda_build=request.cuda_build,
        engine=request.engine.value,
        engine_version=request.engine_version,
        family=request.family,
        dtype=request.dtype,
        target=request.target and request.target.value,
        gpus_wanted=request.gpus,
    )


def run_on(
    survey: Survey, packages: Mapping[str, str], *, cuda_build: str | None = None, **wanted: str | int | None
) -> Survey:
    """The host's facts, completed by what is to run there; a `wanted` fact that is None is not known.

    The CUDA that the environment's torch reports counts more than `cuda_build` and than what the packages imply. If
    torch could not be asked and the packages imply nothing, it is unknown.
    """
    pinned, source = (cuda_build, "request") if cuda_build else (cuda_build_of(packages), "package list")
    torch = survey.torch
    known: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if torch is not None and torch.fault is None:
        known["cuda_build"] = torch.cuda
    elif torch is None or pinned is not None:
        known["cuda_build"] = pinned
    facts = Facts.model_validate({**survey.facts.model_dump(), "packages": dict(packages), **known})
    sightings = (*survey.sightings, *build_sightings(pinned, source, survey))
    return survey.model_copy(update={"facts": facts, "sightings": sightings})


def for_engine(survey: Survey, engine: str, pins: Mapping[str, str]) -> Survey:
    """Facts of any host, completed by the engine that is to run there: with the packages that it pins itself, unless
    the facts say what is installed. Raises `WrongUseError` for facts of another engine."""
    facts = survey.facts
    tables = load_tables()
    if facts.engine is not None and find_engine(facts.engine, tables) != find_engine(engine, tables):
        raise WrongUseError(
            f"the facts are for the engine {facts.engine!r}, but --engine is {engine}",
            fix="omit --engine, or remove the engine from the facts",
        )
    if any(facts.known(name) for name in ("packages", "cuda_build", "engine_version")):
        known = Facts.model_validate({**facts.model_dump(), "engine": engine})
        return survey.model_copy(update={"facts": known})
    return run_on(survey, pins, engine=engine)


def _measured(measurements: Sequence[Measurement]) -> list[Finding]:
    return [
        Finding(
            rule=f"MEASURED-{measurement.kind.upper()}",
            severity="block",
            precedence="P0",
            message=f"tried on this host, and failed: {measurement.kind}: {measurement.evidence}",
            fix="repair what the message names; no rule outweighs a failure on this host",
            sources=("measured on this host",),
        )
        for measurement in measurements
        if not measurement.passed
    ]


def _found(
    applying: Mapping[str, tuple[Rule, Answer]], subject: Subject, measurements: Sequence[Measurement]
) -> list[Finding]:
    proofs = {measurement.kind: measurement for measurement in measurements if measurement.passed}
    findings = []
    for rule, answer in applying.values():
        against = [applying[other][0] for other in rule.contradicts if other in applying]
        if rule.severity == "pass" and not against:
            continue
        proof = next((proofs[kind] for kind in rule.cleared_by if kind in proofs), None)
        findings.append(_finding(rule, answer, subject, against, proof))
    return findings


def _finding(
    rule: Rule, answer: Answer, subject: Subject, against: Sequence[Rule], proof: Measurement | None
) -> Finding:
    """One finding; a contradicted row names the rule that contradicts it, a proof says what it clears."""
    severity, message = rule.severity, fill(rule.message, subject, answer.gpu)
    sources = list(rule.sources)
    for other in against:
        said = fill(other.message, subject, answer.gpu)
        message += f" Contradicted by {other.id} ({other.precedence}), which wins: {said}"
        sources += other.sources
        severity = "info"
    if proof is not None and severity == "block":
        severity, message = (
            "warn",
            f"{message} Overridden: {proof.kind} passed on this host ({proof.evidence}).",
        )
    elif proof is not None and severity == "warn":
        severity, message = "info", f"{message} Cleared: {proof.kind} passed on this host ({proof.evidence})."
    return Finding(
        rule=rule.id,
        severity=severity,
        precedence=rule.precedence,
        message=message,
        fix=fill(rule.fix, subject, answer.gpu),
        sources=tuple(dict.fromkeys(sources)),
    )


def fill(template: str, subject: Subject, gpu: Mapping[str, Value] | None) -> str:
    """The template with its fields' values; a field that is not known reads `?`."""

    def value_of(name: str) -> Value:
        if name.startswith(PACKAGE):
            return (subject.packages or {}).get(name.removeprefix(PACKAGE))
        return (gpu or {}).get(name) if name.startswith(GPU) else subject.values.get(name)

    def text(name: str) -> str:
        value = value_of(name)
        return ", ".join(value) if isinstance(value, tuple) else str(value or "?")

    return PLACEHOLDER.sub(lambda match: text(match[1]), template)


def _not_known(facts: Facts, subject: Subject, unjudged: Mapping[str, Sequence[str]]) -> list[Finding]:
    """One finding for each missing fact: always for those that decide, for others if a rule asked for them."""
    deciding = {field for field in DECIDING if not facts.known(field)}
    if any("gpu.compute_capability" not in gpu for gpu in subject.gpus or ()):
        deciding.add("gpu.compute_capability")
    findings = []
    for field in sorted(deciding | set(unjudged)):
        rules = f" Not judged: {', '.join(sorted(set(unjudged[field])))}." if field in unjudged else ""
        findings.append(
            Finding(
                rule=f"NOT-KNOWN-{field.replace('gpu.', '').replace('_', '-').upper()}",
                severity="unknown" if field in deciding else "info",
                precedence="P1",
                message=f"`{field}` is not known.{rules}",
                fix=_HOW_TO_KNOW.get(field, f"give `{field}`"),
                sources=("docs/adr/0020-judge-compatibility-by-a-table.md",),
            )
        )
    return findings


def _base(field: str) -> str:
    """The fact from which a derived field comes."""
    derived = {
        "driver_cuda": "driver",
        "needs_gpu": "engine",
        "gpu.min_cuda": "gpu.compute_capability",
        "gpu.last_cuda": "gpu.compute_capability",
        "gpu.torch_kernels": "platform",
    }
    return derived.get(field, field)


def _unlisted_engine(facts: Facts, tables: Tables) -> list[Finding]:
    """An engine without a row: whether it serves without a GPU is not known."""
    if facts.engine is None or find_engine(facts.engine, tables):
        return []
    no_gpu = facts.known("gpus") and not facts.gpus
    return [
        Finding(
            rule="ENGINE-NOT-LISTED",
            severity="unknown" if no_gpu else "info",
            precedence="P1",
            message=f"the tables do not list the engine {facts.engine!r}; only driver, CUDA and packages were judged",
            fix=f"use one of {', '.join(row.name for row in tables.engines)}",
            sources=("tasks/compatibility/data/engines.toml",),
        )
    ]
