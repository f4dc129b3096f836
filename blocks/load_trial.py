"""Loads of a model's files in fresh processes, from a page cache that was emptied of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from blocks import page_cache
from blocks.prefetch import Prefetcher
from blocks.process import run
from tasks.core.errors import CommandError
from tasks.core.prefetch import Prefetched, no_prefetch
from tasks.core.verdicts import StageName
from tasks.engines.loaders import LIBRARIES, Loader
from tasks.loading.models import Load

_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class LoadTrial:
    """Implements `tasks.loading.apply.LoadBench`. `python` is that of the libraries' environment, if there is one."""

    worker: Path
    python: Path | None = None

    @property
    def installed(self) -> bool:
        """Whether the environment of the libraries is there."""
        return self.python is not None

    def available_bytes(self) -> int:
        """Memory that a load may take."""
        return page_cache.available_bytes()

    def make_cold(self, files: Sequence[Path]) -> None:
        """Take the files out of the page cache. Raises `SlipwayError` where they stay in it."""
        for file in files:
            page_cache.evict(file)

    def load(self, loader: Loader, files: Sequence[Path], *, digest: bool) -> Load:
        """Load them once. Raises `CommandError` where the loader fails.

        A prefetch begins before the process does, and its clock and processor time begin with it.
        """
        python = [str(self.python), "-I"] if loader in LIBRARIES else [sys.executable, "-I", "-S"]
        asked = [str(self.worker), loader, *(["--digest"] if digest else []), *map(str, files)]
        began, cpu = time.monotonic(), time.process_time()
        with self._beside(loader, files) as prefetched:
            done = run([*python, *asked], timeout_s=_TIMEOUT_S)
        if prefetched.why_not:
            raise CommandError(f"reading ahead failed: {prefetched.why_not}")
        ahead = loader is Loader.PREFETCH
        return _load(
            done.check(f"loading by {loader}").stdout,
            began=began if ahead else None,
            cpu_s=time.process_time() - cpu if ahead else 0.0,
        )

    def _beside(self, loader: Loader, files: Sequence[Path]) -> AbstractContextManager[Prefetched]:
        prefetch = Prefetcher(StageName.LOADING) if loader is Loader.PREFETCH else no_prefetch
        return prefetch(files)


def _load(answer: str, *, began: float | None, cpu_s: float) -> Load:
    """What the worker printed last, with what was spent beside it."""
    try:
        figures = json.loads(answer.splitlines()[-1])
        started, ended = figures.pop("started_at"), figures.pop("ended_at")
        seconds = ended - (started if began is None else began)
        return Load.model_validate({**figures, "seconds": seconds, "cpu_s": figures["cpu_s"] + cpu_s})
    except (ValueError, KeyError, IndexError, ValidationError) as error:
        raise CommandError(f"the loader printed no figures: {answer[-200:]!r}") from error
