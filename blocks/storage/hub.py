"""Models on a Hugging Face hub: `hf:ORG/NAME@REVISION`, by the library `huggingface_hub`.

A revision is pinned to a commit once; from then on everything is read from that commit, wherever the branch moves.
Files come in ranges, so that a copy continues in the middle of one. What the local cache has is read from there,
and without a network everything is.

`HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and the token mean what they mean to the library.
https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from blocks.processes.deadline import within
from blocks.storage.hub_cache import CachedModel
from blocks.storage.hub_errors import HubAnswers, busy_s, explained, is_passing
from blocks.storage.ranges import RangeReader, pause_s
from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, Took, ring
from tasks.core.errors import ModelError, NetworkError, SlipwayError, WrongUseError
from tasks.core.paths import checked
from tasks.core.progress import say
from tasks.core.redaction import remember
from tasks.core.sources import FORMS, GGUF, HubReference, ResolvedModel, parse_hub
from tasks.core.verdicts import StageName
from tasks.staging.models import SourceFile
from tasks.staging.source import changed

HUB = "https://huggingface.co"
constants.HF_HUB_DISABLE_TELEMETRY = True  # no request but those for the model

_DEADLINE_S = 60.0
"""Limit for one request, s."""

_ATTEMPTS = 4
_MOST_FILES = 20_000

T = TypeVar("T")


def resolve_hub(source: str) -> ResolvedModel:
    """The commit that a revision names now; without a network the one that the local cache has for it.

    Raises `NotFoundError`, `AccessError` that says how to give a token, or `NetworkError`.
    """
    reference = _read(source)
    if reference.pinned:
        return ResolvedModel(str(reference), reference.revision)
    cached = CachedModel.find(reference)
    hub = Hub()
    try:
        commit = hub.commit(reference, attempts=_ATTEMPTS if cached is None else 1)
    except NetworkError as error:
        if cached is None:
            raise
        if not is_offline_mode():
            say(StageName.STAGING, f"{error.what}: the local cache is used, {cached.commit[:12]}")
        commit = cached.commit
    return ResolvedModel(str(HubReference(reference.repository, commit, reference.file)), commit)


def open_hub(source: str, *, all_formats: bool) -> HubSource:
    """The files of a resolved repository. Unless `all_formats`, GGUF files are left out where there are others."""
    return HubSource(_read(source), all_formats=all_formats)


def _read(source: str) -> HubReference:
    reference = parse_hub(source)
    if reference is None:
        raise WrongUseError(f"{source[:200]!r} does not name a model", fix=f"write {FORMS}")
    return reference


class Hub:
    """Questions to the hub at `HF_ENDPOINT`. Each is repeated while the hub is busy, as long as it asks for."""

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            raise WrongUseError(
                "HF_ENDPOINT is not a valid address", fix="write https://HOST or http://HOST:PORT"
            )
        self.address = address
        self.host = address.netloc

    @cached_property
    def token(self) -> str | None:
        """The user's token: of the block that `SLIPWAY_HF_BLOCK` names, else as `huggingface_hub` finds it."""
        if block := os.environ.get("SLIPWAY_HF_BLOCK"):
            from blocks.storage.secret_block import load_secret

            found: str | None = load_secret(block, named_by="SLIPWAY_HF_BLOCK").strip()
        else:
            found = get_token()
        if found:
            remember(found)
        return found

    def commit(self, reference: HubReference, *, attempts: int = _ATTEMPTS) -> str:
        """The commit that the reference names now."""
        found = self.ask(
            str(reference),
            lambda: self._api.model_info(reference.repository, revision=reference.revision).sha,
            attempts=attempts,
        )
        if not found:
            raise NetworkError(
                f"{self.host} answered without a commit for {reference}", fix="check HF_ENDPOINT"
            )
        return found

    def files(self, reference: HubReference, *, attempts: int = _ATTEMPTS) -> list[SourceFile]:
        """Files at the top of the repository, by path. What is below it, such as `original/`, is not the model's."""
        repository, revision = quote(reference.repository), quote(reference.revision, safe="")
        page: str | None = f"{self.endpoint}/api/models/{repository}/tree/{revision}"
        listed: list[SourceFile] = []
        while page is not None and len(listed) < _MOST_FILES:
            # Not `HfApi.list_repo_tree`: it waits for a busy hub without a word.
            answer = self.ask(str(reference), partial(self._get, page), attempts=attempts)
            try:
                listed += [_as_source_file(item) for item in answer.json() if item["type"] == "file"]
            except (ValueError, TypeError, KeyError, AttributeError):
                raise self._odd(reference) from None
            page = answer.links.get("next", {}).get("url")
            if page and not self._is_own(urlsplit(page)):  # it would get the token
                raise self._odd(reference)
        return sorted(listed, key=lambda file: checked(file.path, str(reference)))

    def _get(self, url: str) -> httpx2.Response:
        answer = get_session().get(url, headers=build_hf_headers(token=self.token or False))
        hf_raise_for_status(answer)
        return answer

    def address_of(self, reference: HubReference, file: SourceFile) -> str:
        """Where the file's bytes are: on the hub itself, or signed, at the store that it names."""
        url = hf_hub_url(reference.repository, file.path, revision=reference.revision, endpoint=self.endpoint)
        place = f"{reference}/{file.path}"
        found = self.ask(
            place,
            lambda: get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint),
        )
        if found.size not in (None, file.size_bytes):
            raise changed(place)
        return found.location

    def headers(self, address: SplitResult) -> Mapping[str, str]:
        """The token, for requests to the hub itself only: a signed address needs none."""
        return {"Authorization": f"Bearer {self.token}"} if self._is_own(address) and self.token else {}

    def _is_own(self, address: SplitResult) -> bool:
        return (address.scheme, address.netloc) == (self.address.scheme, self.address.netloc)

    def _odd(self, reference: HubReference) -> NetworkError:
        return NetworkError(
            f"{self.host} answered without a list of files for {reference}", fix="check HF_ENDPOINT"
        )

    def ask(self, place: str, question: Callable[[], T], *, attempts: int = _ATTEMPTS) -> T:
        """The hub's answer. Waits as long as a busy hub asks for, and says so."""
        failures = refusals = 0
        answers = HubAnswers()
        patience = time.monotonic() + answers.patience_s()
        while True:
            try:
                return within(_DEADLINE_S, f"{self.host} (for {place})", question)
            except SlipwayError:
                raise
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                if (wanted_s := busy_s(error)) is not None:
                    refusals += 1
                    wait_s = wanted_s or pause_s(refusals)
                    if time.monotonic() + wait_s > patience:
                        raise explained(place, self.host, error) from None
                    answers.waits(place, 429, wait_s)
                else:
                    failures += 1
                    if not is_passing(error) or failures >= attempts:
                        raise explained(place, self.host, error) from None
                    wait_s = pause_s(failures)
            current().wait(wait_s)
            current().check()

    @cached_property
    def _api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token or False)


class HubSource:
    """The files of one commit of a repository. Implements `tasks.staging.source.ModelSource`."""

    parallel = 8

    def __init__(self, reference: HubReference, *, all_formats: bool) -> None:
        self._reference = HubReference(reference.repository, reference.revision)
        self._all_formats = all_formats
        self._hub = Hub()
        self._listed: Sequence[SourceFile] | None = None
        self._cached = CachedModel.find(self._reference)
        self._ranges = RangeReader(self._address, self._place, HubAnswers(), self._hub.headers)

    @property
    def name(self) -> str:
        """Its address."""
        return str(self._reference)

    def list_files(self) -> Sequence[SourceFile]:
        """Files that may be served, by path. A commit never changes: they are listed once. Raises `AccessError`."""
        if self._listed is None:
            self._listed = self._list()
        return self._listed

    def _list(self) -> Sequence[SourceFile]:
        try:
            found = self._hub.files(self._reference, attempts=_ATTEMPTS if self._cached is None else 1)
            self._check_access(found)
        except NetworkError:
            if self._cached is None:
                raise
            found = self._cached.list_files()
        tensors = any(".safetensors" in file.path for file in found)
        if tensors and not self._all_formats:
            found = [file for file in found if not file.path.endswith(GGUF)]
        if not found:
            raise ModelError(f"there are no files at the top of {self.name}", fix="check the spec's `model`")
        return found

    def _check_access(self, found: Sequence[SourceFile]) -> None:
        """Raise `AccessError` for a gated model, whose files anybody may list."""
        first = next((file for file in found if file.path == "config.json"), found[0] if found else None)
        if first is not None and not (self._cached and self._cached.has(first)):
            self._hub.address_of(self._reference, first)

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that file."""
        if self._cached is not None and self._cached.has(file):
            return self._cached.read(file, offset, length)
        (buffer,) = ring(1, length)
        self._ranges.read_into(file.path, file.identity, offset, length, buffer, 0, lambda _: None)
        return bytes(buffer.view[:length])

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, straight into the buffer; from the local cache if that has the file."""
        if self._cached is not None and self._cached.has(file):
            self._cached.read_into(file, offset, length, buffer, at, took)
        else:
            self._ranges.read_into(file.path, file.identity, offset, length, buffer, at, took)

    def _address(self, path: str) -> str:
        file = next(file for file in self.list_files() if file.path == path)
        return self._hub.address_of(self._reference, file)

    def _place(self, path: str) -> str:
        return f"{self.name}/{path}"


def _as_source_file(item: Mapping[str, Any]) -> SourceFile:
    """Its identity is the name that Git has for its content, or the SHA-256 of a large file."""
    sha256 = (item.get("lfs") or {}).get("oid")
    return SourceFile(
        path=item["path"], size_bytes=item["size"], identity=sha256 or item["oid"], sha256=sha256
    )
