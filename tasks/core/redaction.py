"""What must not leave this process in plain text: passwords, tokens and keys. One redaction for every way out.

Errors (`errors.py`), lines of progress, records, artifacts, JSON documents and logs all pass through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST_SECRET = 8
"""Characters of the shortest value of a variable that is looked for in a text: `true` or `1` would blot out words."""

_VARIABLE = re.compile(
    r"SECRET|(?<!MAX_)(?<!NUM_)TOKEN(?!IZ|S_PER)|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)PASS(?:$|_(?!ENV))|CREDENTIAL|API_?KEY"
    r"|ACCESS_?KEY|PRIVATE_?KEY|ENCRYPTION_KEY|AUTH_STRING|AUTH_CONFIG|_DSN$|(?:^|_)(?:DATABASE|REDIS|MONGO\w*)(?:_CONNECTION)?_UR[IL]$",
    re.IGNORECASE,
)
_PATH = re.compile(r"_(?:FILE|PATH|DIR)$", re.IGNORECASE)
_PLACE = re.compile(rf"{_PATH.pattern}|_CREDENTIALS$", re.IGNORECASE)
"""Variables that name where a secret is kept: the path is no secret, and an error has to name it.

`GOOGLE_APPLICATION_CREDENTIALS` is one; others of that ending may hold the secret itself.
"""

_KEY = r"password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?string|token(?!s|iz)"
_KEY_BEFORE = r"[\w-]{0,64}[_-]|[\w-]{1,64}?(?!token)"
_QUERY = (
    r"X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId"
    r"|Signature|sig|key|code"
)
_VALUE = r"[^\s\"'&,;<>(){}\[\]]+"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A password with a slash in it: a port is followed by a slash, too, but is a number.
        (r"(?<=://)[^/\s:@\[\"']{0,256}:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]{0,512}@", f"{HIDDEN}@"),
        (r"(?<=://)[^/\s\"'<>]{0,512}@", f"{HIDDEN}@"),
        (
            r"\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',;]+",
            rf"\g<1>{HIDDEN}",
        ),
        (r"\b(bearer|basic)\s+(?!auth|token|cred|access)[^\s\"'<>,;]{6,}", rf"\g<1> {HIDDEN}"),
        (rf"([?&](?:{_QUERY})=){_VALUE}", rf"\g<1>{HIDDEN}"),
        (rf"(?<![\w-])((?:{_KEY_BEFORE})?(?:{_KEY})[\"']?=[\"']?){_VALUE}", rf"\g<1>{HIDDEN}"),
        (
            r"(?<![\w-])([\w-]{0,64}?(?:password|passwd|passphrase|secret|secret[_-]?(?:access[_-]?)?key|api[_-]?key|"
            rf"(?:access|auth|bearer|hub|hf)[_-]token)[\"']?:\s*[\"']?)(?!\*\*\*){_VALUE}",
            rf"\g<1>{HIDDEN}",
        ),
    )
) + tuple(
    (re.compile(pattern), HIDDEN)
    for pattern in (
        r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b",
        r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,})",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    )
)
"""What looks like a secret wherever it is found, and what takes its place."""

_SECRET_KEY = re.compile(rf"(?:^|[_-])(?:{_KEY}|authorization)$", re.IGNORECASE)
_NO_SECRET_KEY = re.compile(r"(?:bos|eos|pad|unk|cls|sep|mask|first|per|output)[_-]token$", re.IGNORECASE)

_remembered: set[str] = set()


def names_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that its value is a secret."""
    return bool(_VARIABLE.search(variable))


def names_path(variable: str) -> bool:
    """Whether the name of an environment variable says that its value is a file or folder."""
    return bool(_PATH.search(variable))


def secrets_of(environ: Mapping[str, str]) -> frozenset[str]:
    """The values of the variables that hold secrets."""
    return frozenset(
        value
        for name, value in environ.items()
        if len(value) >= SHORTEST_SECRET and names_secret(name) and not _PLACE.search(name)
    )


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without what looks like a secret, and without these `secrets` in any form that programs print them in.

    Pure.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def remember(secret: str) -> None:
    """Redact this value from now on: one that came from a block or a file, not from the environment."""
    if len(secret) >= SHORTEST_SECRET:
        _remembered.add(secret)


def redacted(text: str) -> str:
    """`text` without secrets, those included that this process holds."""
    return redact(text, secrets_of(os.environ) | _remembered)


def redacted_value(value: Any) -> Any:
    """A JSON-like value whose texts are redacted; a text under a key such as `password` is hidden whole."""
    secrets = secrets_of(os.environ) | _remembered

    def clean(one: Any) -> Any:
        match one:
            case str():
                return redact(one, secrets)
            case dict():
                return {key: HIDDEN if _hides(key, held) else clean(held) for key, held in one.items()}
            case list():
                return [clean(held) for held in one]
            case tuple() if type(one) is tuple:
                return tuple(clean(held) for held in one)
        return one

    return clean(value)


def _hides(key: Any, held: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(held, str)
        and bool(held)
        and bool(_SECRET_KEY.search(key))
        and not _NO_SECRET_KEY.search(key)
    )


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, in one line, quoted as Python or an address does, and line by line."""
    yield secret
    pieces = (" ".join(secret.split()), *(line.strip() for line in secret.splitlines()))
    yield from (piece for piece in pieces if len(piece) >= SHORTEST_SECRET)
    yield secret.encode("unicode_escape").decode()
    yield repr(secret)[1:-1]
    yield quote(secret, safe="")
