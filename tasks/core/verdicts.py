"""Verdicts as values (docs/design.md): what each stage may answer, and which answers say no."""

from __future__ import annotations

from enum import StrEnum


class StageName(StrEnum):
    """The stages, in the words used for folders, flows, artifacts and records."""

    ENVIRONMENT = "environment"
    COMPATIBILITY = "compatibility"
    STAGING = "staging"
    DISK = "disk"
    LOADING = "loading"
    QUANTIZATION = "quantization"
    BATCHING = "batching"
    ROLLOUT = "rollout"
    HEALTH = "health"
    LEAKS = "leaks"
    REGISTRY = "registry"
    LIFECYCLE = "lifecycle"


class EnvironmentVerdict(StrEnum):
    SOUND = "sound"
    FLAGGED = "flagged"
    CONFLICTING = "conflicting"


class CompatibilityVerdict(StrEnum):
    PASS = "pass"
    WARN = "warn"
    UNKNOWN = "unknown"
    BLOCK = "block"


class StagingVerdict(StrEnum):
    VERIFIED = "verified"
    SLOW = "slow"
    BLOCKED = "blocked"
    CORRUPT = "corrupt"


class ChoiceVerdict(StrEnum):
    """Verdicts of quantization, batching and loading."""

    CHOSEN = "chosen"
    NONE = "none"


class RolloutVerdict(StrEnum):
    SERVING = "serving"
    ROLLED_BACK = "rolled_back"


class HealthVerdict(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class LeakVerdict(StrEnum):
    NONE = "none"
    SUSPECTED = "suspected"
    CONFIRMED = "confirmed"


class RegistryVerdict(StrEnum):
    """Verdicts of one check of a model registry: does the alias name the version that serves?"""

    CURRENT = "current"
    MOVED = "moved"


class LifecycleVerdict(StrEnum):
    """Verdicts of a whole deploy: the release serves, or a stage said no and the previous release keeps serving."""

    SERVING = "serving"
    REFUSED = "refused"


FAULT = "fault"
"""Outcome of a record whose stage failed instead of answering."""

CANCELLED = "cancelled"
"""Outcome of a record whose stage was stopped because another had said no."""

_SAYS_NO: dict[StageName, frozenset[str]] = {
    StageName.ENVIRONMENT: frozenset({EnvironmentVerdict.CONFLICTING}),
    StageName.COMPATIBILITY: frozenset({CompatibilityVerdict.UNKNOWN, CompatibilityVerdict.BLOCK}),
    StageName.STAGING: frozenset({StagingVerdict.BLOCKED, StagingVerdict.CORRUPT}),
    StageName.DISK: frozenset({StagingVerdict.CORRUPT}),
    StageName.LOADING: frozenset({ChoiceVerdict.NONE}),
    StageName.QUANTIZATION: frozenset({ChoiceVerdict.NONE}),
    StageName.BATCHING: frozenset({ChoiceVerdict.NONE}),
    StageName.ROLLOUT: frozenset({RolloutVerdict.ROLLED_BACK}),
    StageName.HEALTH: frozenset({HealthVerdict.UNHEALTHY}),
    StageName.LEAKS: frozenset({LeakVerdict.CONFIRMED}),
    StageName.REGISTRY: frozenset(),
    StageName.LIFECYCLE: frozenset({LifecycleVerdict.REFUSED}),
}


def says_no(stage: StageName, verdict: str) -> bool:
    """Whether this verdict ends a command with exit code 3."""
    return verdict in _SAYS_NO[stage]
