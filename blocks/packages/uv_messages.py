"""Read uv's messages: a refusal to resolve becomes a value, every other failure an exception. Pure."""

from __future__ import annotations

import re

from packaging.utils import canonicalize_name

from blocks.processes.process import last_lines
from tasks.core.disk_faults import says_disk_full
from tasks.core.errors import CommandError, DiskFullError, NetworkError, SlipwayError
from tasks.environment.models import Conflict, Refusal

_REFUSED = "No solution found when resolving"
# A resolver that cannot reach the index also reports that there is no solution, with one of these hints.
_KEPT_OUT = re.compile(r"network was disabled|could not be queried|returned a 40[13]")
_UNREACHABLE = re.compile(
    r"error sending request|dns error|tcp connect error|operation timed out"
    r"|connection (?:reset|closed|refused)|HTTP status (?:server|client) error"
    r"|Request failed after|tls handshake|certificate",
    re.IGNORECASE,
)
_PLACE = re.compile(r"https?://(?:[^/\s)]*@)?([^/\s)]+)")
_LABEL = re.compile(r"^\s*(?:error|cause|warning|hint):\s*")

_WHAT = r"`?([A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])?(?:\s*[<>=!~][^\s;`]*)?)`?"
_DEPENDS = re.compile(rf"{_WHAT} depends? on {_WHAT}")
_MARKER = re.compile(r"\{[^{}]*\}")
_ANY_OF = re.compile(r"(?:one|all) of: ((?P<name>[A-Za-z0-9._-]+)[<>=!~]\S*(?: (?P=name)[<>=!~]\S*)*)")
_YOU = re.compile(rf"you require {_WHAT}(?: and {_WHAT})?")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")

_MISSING = re.compile(r"The package `([^`]+)` requires `([^`]+)`, but it's not installed")
_WRONG = re.compile(r"The package `([^`]+)` requires `([^`]+)`, but `([^`]+)` is installed")
_COMPLAINT = re.compile(r"The package `([^`]+)` (.*)")


def fault(doing: str, stderr: str, code: int) -> SlipwayError:
    """The exception for uv's exit status `code` and its output, if that is not a refusal."""
    tail = last_lines(stderr)
    if says_disk_full(stderr):
        return DiskFullError(
            f"no space left on the disk while {doing}: {_deepest(stderr)}",
            fix="free space, or set SLIPWAY_HOME and UV_CACHE_DIR to a larger disk",
            detail=tail,
        )
    if "Hash mismatch" in stderr:
        return SlipwayError(
            f"the hash of a package differs from the lock while {doing}",
            fix="someone changed the package or the lock: make the lock again, and compare the two locks",
            detail=tail,
        )
    if _KEPT_OUT.search(stderr) or _UNREACHABLE.search(stderr):
        place = _PLACE.search(stderr)
        index = f"the package index {place[1]}" if place else "the package index"
        return NetworkError(
            f"cannot reach {index} while {doing}: {_deepest(stderr)}",
            fix="check the network and UV_DEFAULT_INDEX, or use an existing lock and uv's cache",
            detail=tail,
        )
    return CommandError(f"uv exited with {code} while {doing}: {_first(stderr)}", detail=tail)


def refusal(stderr: str, code: int) -> Refusal | None:
    """The resolver's refusal, with what requires what; None if uv failed for another reason."""
    if code != 1 or _REFUSED not in stderr or _KEPT_OUT.search(stderr):
        return None
    body = stderr.partition(_REFUSED)[2].partition("\n")[2]
    explanation, *hints = re.split(r"(?m)^hint:\s*", body)
    reason = _joined(explanation) or "no set of versions satisfies all requirements"
    notes = " ".join(f"Hint: {_joined(hint)}" for hint in hints)
    return Refusal(reason=f"{reason} {notes}".strip(), conflicts=demands(explanation))


def demands(explanation: str) -> tuple[Conflict, ...]:
    """Which package requires what, from the resolver's explanation, without the resolver's conclusions."""
    text = re.sub(r"we can conclude that.*?(?=And because|$)", " ", _joined(explanation), flags=re.DOTALL)
    text = _ANY_OF.sub(lambda match: _from_first_to_last(match[1].split()), _MARKER.sub("", text))
    found = [(match[2], match[1]) for match in _DEPENDS.finditer(text)]
    for match in _YOU.finditer(text):
        found += [(what, None) for what in match.groups() if what]
    return tuple(
        Conflict(package=_package(what), required_by=by, requirement=what.rstrip(",."))
        for what, by in dict.fromkeys(found)
    )


def _from_first_to_last(ranges: list[str]) -> str:
    """`a>=1,<2 a>2,<3` as `a>=1,<3`: readers do not need the gaps."""
    first, last = ranges[0].split(","), ranges[-1].split(",")
    return ranges[0] if len(ranges) == 1 else ",".join([first[0], *last[1:]])


def complaints(output: str) -> tuple[Conflict, ...]:
    """The lines of `uv pip check` that name a package, each as a conflict."""
    found = []
    for line in output.splitlines():
        if match := _WRONG.search(line) or _MISSING.search(line):
            by, wanted, *installed = match.groups()
            there = installed[0] if installed else None
            found.append(
                Conflict(package=_package(wanted), required_by=by, requirement=wanted, installed=there)
            )
        elif match := _COMPLAINT.search(line):
            found.append(Conflict(package=match[1], reason=f"{match[1]} {match[2]}".replace("`", "")))
    return tuple(found)


def _package(requirement: str) -> str:
    match = _NAME.match(requirement)
    return canonicalize_name(match[0]) if match else requirement


def _joined(text: str) -> str:
    return " ".join(_LABEL.sub("", line).strip() for line in text.splitlines() if line.strip()).strip()


def _first(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return _LABEL.sub("", lines[0]).strip() if lines else "no reason given"


def _deepest(stderr: str) -> str:
    """The last cause in uv's output, which is the operating system's message."""
    causes = [line for line in stderr.splitlines() if line.lstrip().startswith(("cause:", "hint:"))]
    return _LABEL.sub("", causes[-1]).strip() if causes else _first(stderr)
