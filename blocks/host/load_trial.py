"""Loads of a model's files in fresh processes, from a page cache that was emptied of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from blocks.host import page_cache
from blocks.processes.process import run
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError
from tasks.core.serving import LIBRARIES, Loader
from tasks.loading.models import Load

_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class LoadTrial:
    """Implements `tasks.loading.apply.LoadBench`. `python` is that of the libraries' environment, if there is one."""

    worker: Path
    python: Path | None = None
    available_bytes = staticmethod(page_cache.available_bytes)

    @property
    def installed(self) -> bool:
        """Whether the environment of the libraries is there."""
        return self.python is not None

    def make_cold(self, files: Sequence[Path]) -> None:
        """Take the files out of the page cache. Raises `SlipwayError` if they stay in it."""
        for file in files:
            page_cache.evict(file)

    def load(self, loader: Loader, files: Sequence[Path], *, digest: bool) -> Load:
        """Load them once. Raises `CommandError` if the loader fails."""
        python = [str(self.python), "-I"] if loader in LIBRARIES else [sys.executable, "-I", "-S"]
        options = {"--digest": digest, "--huge-pages": not page_cache.gives_memory_back()}
        chosen = [option for option, wanted in options.items() if wanted]
        asked = [str(self.worker), loader, *chosen, *map(str, files)]
        finished = run([*python, *asked], timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,))
        answer = finished.check(f"loading by {loader}").stdout
        try:
            return Load.model_validate_json(answer.splitlines()[-1])
        except (IndexError, ValidationError) as error:
            raise CommandError(f"the loader printed no figures: {answer[-200:]!r}") from error
