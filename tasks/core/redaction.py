"""Redaction of passwords, tokens and keys, which must not leave this process in plain text.

Errors (`errors.py`), lines of progress, records, artifacts, JSON documents and logs all pass through here.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST_SECRET = 8
"""Shortest value of a variable that is redacted, in characters: `true` or `1` would blot out words."""

_VARIABLE = re.compile(
    r"SECRET|(?<!MAX_)(?<!NUM_)TOKEN(?!IZ|S_PER)|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)PASS(?:$|_(?!ENV))|CREDENTIAL|API_?KEY"
    r"|ACCESS_?KEY|PRIVATE_?KEY|ENCRYPTION_KEY|AUTH_STRING|AUTH_CONFIG|_DSN$|(?:^|_)(?:DATABASE|REDIS|MONGO\w*)(?:_CONNECTION)?_UR[IL]$",
    re.IGNORECASE,
)
_PATH = re.compile(r"_(?:FILE|PATH|DIR)$", re.IGNORECASE)
_PLACE = re.compile(rf"{_PATH.pattern}|_CREDENTIALS$", re.IGNORECASE)
"""Variables that name the file of a secret: the path is not a secret, and errors must name it.

`GOOGLE_APPLICATION_CREDENTIALS` is one; others with that ending may contain the secret itself.
"""

_KEY = r"password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?string|token(?!s|iz)"
_KEY_BEFORE = r"[\w-]{0,64}[_-]|[\w-]{1,64}?(?!token)"
_QUERY = (
    r"X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId"
    r"|Signature|sig|key|code"
)
_VALUE = r"[^\s\"'&,;<>(){}\[\]]+"


def _compiled(*rules: tuple[str, str], flags: int = re.IGNORECASE) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern, flags), replacement) for pattern, replacement in rules)


_IN_ADDRESSES = _compiled(
    # A password may contain a slash; a port is followed by one too, but is a number.
    (r"(?<=://)[^/\s:@\[\"']{0,256}:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]{0,512}@", f"{HIDDEN}@"),
    (r"(?<=://)[^/\s\"'<>]{0,512}@", f"{HIDDEN}@"),
)

_LABELLED = _compiled(
    (
        r"\b((?:proxy-)?authorization(?:[\"']?\s*[:=]\s*|[\"']\s*,\s*b?(?=[\"']))[\"']?)"
        r"(?:(?:bearer|basic|token|digest)\s+)?[^\s\"',;]+",
        rf"\g<1>{HIDDEN}",
    ),
    (r"\b(header(?: value)?:?\s+b?[\"'](?:bearer|basic)\s+)[^\"']+", rf"\g<1>{HIDDEN}"),
    (rf"([?&](?:{_QUERY})=){_VALUE}", rf"\g<1>{HIDDEN}"),
    (rf"(?<![\w-])((?:{_KEY_BEFORE})?(?:{_KEY})[\"']?=[\"']?){_VALUE}", rf"\g<1>{HIDDEN}"),
    (
        r"(?<![\w-])([\w-]{0,64}?(?:password|passwd|passphrase|secret|secret[_-]?(?:access[_-]?)?key|api[_-]?key|"
        rf"(?:access|auth|bearer|hub|hf)[_-]token)[\"']?:\s*[\"']?)(?!\*\*\*|must ){_VALUE}",
        rf"\g<1>{HIDDEN}",
    ),
)
"""The value after the name of a header, a parameter or a key."""

_BY_LOOK = _compiled(
    (r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b", HIDDEN),
    (r"\bgh[opsur]_(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{20,}", HIDDEN),
    (r"\b(?:github_pat_(?=[a-z0-9_]{0,64}[A-Z])\w{20,}|glpat-(?=[a-z0-9_-]{0,64}[A-Z])[\w-]{16,})", HIDDEN),
    (r"\bhf_(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{20,}", HIDDEN),
    (r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+", HIDDEN),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN),
    flags=0,
)
"""Tokens with a known prefix. Each is random, so it contains a capital letter: an ordinary name or path with the same
prefix does not match."""

_SK = re.compile(r"(?<![\w./-])sk-([A-Za-z0-9_-]{16,})")
_SCHEME = re.compile(r"\b(bearer|basic)(\s+)([A-Za-z0-9._~+/-]{5,}[A-Za-z0-9_-]={0,2})", re.IGNORECASE)
_RANDOM = re.compile(
    r"(?<![A-Za-z0-9])(?:(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{20,}"
    r"|(?=[A-Za-z]*[0-9])(?=[0-9a-z]*[A-Z])(?=[0-9A-Z]*[a-z])[A-Za-z0-9]{16,})"
    r"|^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
    r"|^[A-Za-z0-9+/_-]{6,}={1,2}$"
)
"""Words too long and too mixed to be a name, UUIDs, and padded base64."""

_SECRET_KEY = re.compile(rf"(?:^|[_-])(?:{_KEY}|authorization)$", re.IGNORECASE)
_NO_SECRET_KEY = re.compile(r"(?:bos|eos|pad|unk|cls|sep|mask|first|per|output)[_-]token$", re.IGNORECASE)

_REFERENCE = re.compile(r"file:/.*|block:[a-z0-9-]{1,100}")
"""Names a secret, as `serving.api_key` does, and is none."""

_remembered: set[str] = set()


def names_secret(variable: str) -> bool:
    """Whether the name of an environment variable marks its value as a secret."""
    return bool(_VARIABLE.search(variable))


def names_path(variable: str) -> bool:
    """Whether the name of an environment variable marks its value as a file or folder."""
    return bool(_PATH.search(variable))


def secrets_of(environ: Mapping[str, str]) -> frozenset[str]:
    """The values of the variables that contain secrets."""
    return frozenset(
        value
        for name, value in environ.items()
        if len(value) >= SHORTEST_SECRET and names_secret(name) and not _PLACE.search(name)
    )


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without anything that looks like a secret, and without these `secrets` in any form in which
    programs print them.

    Pure.
    """
    text = redact_known(text, secrets)
    for pattern, replacement in (*_LABELLED, *_BY_LOOK):
        text = pattern.sub(replacement, text)
    text = _SK.sub(lambda found: HIDDEN if _RANDOM.search(found[1]) else found[0], text)
    return _SCHEME.sub(_without_credentials, text)


def redact_known(text: str, secrets: Iterable[str]) -> str:
    """`text` without these `secrets`, and without user and password in addresses; nothing else is guessed. Pure."""
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    for pattern, replacement in _IN_ADDRESSES:
        text = pattern.sub(replacement, text)
    return text


def _without_credentials(found: re.Match[str]) -> str:
    """The text after `Bearer` or `Basic`, unless it is an ordinary word or a name."""
    scheme, space, word = found.groups()
    secret = _RANDOM.search(word) or (scheme.lower() == "basic" and _is_user_and_password(word))
    return f"{scheme}{space}{HIDDEN}" if secret else found[0]


def _is_user_and_password(word: str) -> bool:
    """Whether it is `USER:PASSWORD` in base64, as RFC 7617 says."""
    if not re.search(r".[A-Z]", word):
        return False  # such as `azores`, which could be base64 for `k:+z`
    try:
        user, colon, _ = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).partition(b":")
    except ValueError:
        return False
    return bool(colon) and user.isascii() and user.decode("ascii").isprintable()


def remember(secret: str) -> None:
    """Redact this value from now on: it comes from a block or a file, not from the environment."""
    if len(secret) >= SHORTEST_SECRET:
        _remembered.add(secret)


def redacted(text: str) -> str:
    """`text` without secrets, including those that this process knows."""
    return redact(text, secrets_of(os.environ) | _remembered)


def redacted_value(value: Any, *, by_look: bool = True) -> Any:
    """A JSON-like value with redacted texts; a text under a key such as `password` is hidden completely.

    Without `by_look` only secrets that this process knows and those in addresses are hidden: for values that Slipway
    reads back, where a name or a path must not change because it resembles a token.
    """
    secrets = secrets_of(os.environ) | _remembered
    hide = redact if by_look else redact_known

    def clean(one: Any) -> Any:
        match one:
            case str():
                return hide(one, secrets)
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
        and not _REFERENCE.fullmatch(held)
    )


def _forms(secret: str) -> Iterator[str]:
    """A secret unchanged, on one line, quoted as in Python or in an address, and line by line."""
    yield secret
    pieces = (" ".join(secret.split()), *(line.strip() for line in secret.splitlines()))
    yield from (piece for piece in pieces if len(piece) >= SHORTEST_SECRET)
    yield secret.encode("unicode_escape").decode()
    yield repr(secret)[1:-1]
    yield quote(secret, safe="")
