"""What a run shows at its Prefect server. No finished work, and no fault that ended it, is lost for want of that."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.exceptions import MissingContextError, PrefectException

from tasks.core.progress import say
from tasks.core.verdicts import StageName


def shown(stage: StageName, show: Callable[[], UUID]) -> UUID | None:
    """The id of the artifact that `show` makes or changes; None where there is none.

    That is outside a run, where there is nobody to show it to, and where the server fails, which is said.
    """
    try:
        get_run_logger()
    except MissingContextError:
        return None
    try:
        return show()
    except (PrefectException, httpx.HTTPError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(stage, f"Prefect's server did not take the artifact: {reason}")
        return None
