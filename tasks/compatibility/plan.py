"""The judgement: which rules apply to a host, and what they add up to (docs/facts.md). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tasks.compatibility.conditions import PACKAGE, Answer, Subject, Value, any_holds, evaluate
from tasks.compatibility.models import (
    NOT_KNOWN,
    CompatibilityRequest,
    CompatibilityResult,
    Finding,
    KnownBad,
    Measurement,
    Survey,
    TableCheck,
    TablesCheck,
)
from tasks.compatibility.rules import Rule, Tables, load_tables
from tasks.compatibility.subject import build_sightings, cuda_build_of, describe, find_engine
from tasks.compatibility.weights import SOURCES
from tasks.compatibility.wording import fill, fill_advice
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict

DECIDING = ("driver", "cuda_build", "gpus")
"""Without one of these the answer is never `pass`."""

_ORDER = ("block", "warn", "unknown", "info", "pass")

_NOT_KNOWN = {"gpu.weights": "how the engine serves these weights on this GPU is not known"}
"""What to say of a field that is not a fact."""

_HOW_TO_KNOW = {
    "driver": "run `slipway survey` on the host, or give --nvidia-smi, --driver, or `driver`; null if none",
    "cuda_build": (
        "give all packages (--pip-freeze), the image's environment (--env), or `cuda_build` (torch.version.cuda); "
        "null if none"
    ),
    "gpus": "run `slipway survey` on the host, or give --nvidia-smi, --gpu, or `gpus`; [] if there are none",
    "container_gpus": "start Docker and run `slipway survey`, or give `container_gpus`; [] without a way",
    "container_toolkit": "give the version that `nvidia-ctk --version` prints; null if it is not installed",
    "image_requires": "give the image's environment (--env), or `image_requires`; [] if it demands nothing",
    "platform": "give `cpu`, such as `aarch64` or the processor's name: torch's wheels differ by it",
    "gpu.weights": "give `engine_version` and `family`; where both are given, no row of weights.toml covers it",
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
    packages: Mapping[str, str],
    measurements: Sequence[Measurement] = (),
    tables: Tables | None = None,
    *,
    glibc: str | None = None,
) -> tuple[KnownBad, ...]:
    """Combinations among these packages that are known to fail on any host, or on any with this glibc: rules that
    depend on nothing else.

    Block and warn only. A measurement that proves more than a rule knows weakens it, as in `judge`.
    """
    tables = tables or load_tables()
    host = {} if glibc is None else {"glibc": glibc}
    about_packages = [rule for rule in tables.rules if _is_about_packages(rule, host.keys())]
    engines: list[str | None] = [
        row.name for row in tables.engines if not {row.name, *row.aliases}.isdisjoint(packages)
    ]
    found: dict[str, KnownBad] = {}
    for engine in engines or [None]:
        subject = describe(Survey(facts=Facts(packages=dict(packages), engine=engine, **host)), tables)
        for rule in about_packages:
            answer = evaluate(rule.when, subject)
            if answer.holds and not any_holds(rule.unless, subject):
                (finding,) = _found({rule.id: (rule, answer)}, subject, measurements) or (None,)
                if finding is not None and finding.severity in ("block", "warn"):
                    found[rule.id] = KnownBad(package=_package_of(rule, subject), finding=finding)
    return tuple(found.values())


_OF_PACKAGES = {
    "build_odd": "torch",
    "build_odd_image": "torch",
    "build_odd_optional": "torch",
    "own_torch": "torch",
    "pin_broken": "pin_package",
    "pin_near": "pin_package",
    "glibc": "glibc_package",
}
"""Fields that tables derive from packages alone, and the package that is to blame."""


def _package_of(rule: Rule, subject: Subject) -> str:
    field = next(
        (field for field in rule.when if field.startswith(PACKAGE) or field in _OF_PACKAGES), "glibc"
    )
    name = _OF_PACKAGES.get(field, field.removeprefix(PACKAGE))
    return str(subject.values.get(name, name)).partition(" ")[0]


def _is_about_packages(rule: Rule, host: Collection[str]) -> bool:
    fields = (rule.when.keys() | rule.unless.keys()) - set(host)
    if "glibc" in host and rule.when.get("glibc") == "<@glibc_needed":
        return fields <= {"target"}
    own = {field for field in fields if field.startswith(PACKAGE) or field in _OF_PACKAGES}
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


def for_engine(
    survey: Survey, engine: str, pins: Mapping[str, str], *, cuda_build: str | None = None
) -> Survey:
    """Facts of any host, completed by the engine that is to run there: with the packages that it pins itself, in
    their `cuda_build`, unless the facts say what is installed. Raises `WrongUseError` for facts of another engine."""
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
    return run_on(survey, pins, engine=engine, cuda_build=cuda_build)


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
        against = [applying[other] for other in rule.contradicts if other in applying]
        if rule.severity == "pass" and not against:
            continue
        proof = next((proofs[kind] for kind in rule.cleared_by if kind in proofs), None)
        findings.append(_finding(rule, answer, subject, against, proof))
    return findings


def _finding(
    rule: Rule,
    answer: Answer,
    subject: Subject,
    against: Sequence[tuple[Rule, Answer]],
    proof: Measurement | None,
) -> Finding:
    """One finding; a contradicted row names the rule that contradicts it, a proof says what it clears."""
    severity, message = rule.severity, fill(rule.message, subject, answer.gpu)
    sources = [*rule.sources, *_sources_of_rows(rule, answer.gpu or {})]
    for other, its in against:
        said = fill(other.message, subject, its.gpu)
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
        fix=fill_advice(rule.fix, subject, answer.gpu),
        sources=tuple(dict.fromkeys(sources)),
        contradicted_by=tuple(other.id for other, _ in against),
    )


def _sources_of_rows(rule: Rule, gpu: Mapping[str, Value]) -> Iterable[str]:
    """The sources of the rows behind the GPU's fields that the rule asks for, where they have their own."""
    asked = " ".join(f"{field} {wanted}" for field, wanted in rule.when.items())
    for field, value in gpu.items():
        name = field.removesuffix(SOURCES)
        if name != field and name in asked and isinstance(value, tuple):
            yield from value


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
                rule=f"{NOT_KNOWN}{field.replace('gpu.', '').replace('_', '-').upper()}",
                severity="unknown" if field in deciding else "info",
                precedence="P1",
                message=f"{_NOT_KNOWN.get(field, f'`{field}` is not known')}.{rules}",
                fix=_HOW_TO_KNOW.get(field, f"give `{field}`"),
                sources=("docs/adr/0020-judge-compatibility-by-a-table.md",),
            )
        )
    return findings


def _base(field: str) -> str:
    """The fact from which a derived field comes."""
    derived = {
        "compat_branch": "forward_compat",
        "compat_cuda": "forward_compat",
        "compat_fit": "forward_compat",
        "driver_branch": "driver",
        "build_branch": "cuda_build",
        "driver_cuda": "driver",
        "image_check": "image_requires",
        "needs_gpu": "engine",
        "gpu.last_branch": "gpu.compute_capability",
        **dict.fromkeys(
            (*_OF_PACKAGES.keys() - {"glibc"}, "glibc_needed", "mixed_cuda", "torch_cuda"), "packages"
        ),
        "gpu.min_cuda": "gpu.compute_capability",
        "gpu.last_cuda": "gpu.compute_capability",
        "gpu.torch_kernels": "platform",
        "gpu.engine_floor": "engine_version",
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
