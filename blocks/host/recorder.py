"""The recorder of the stages that run on this host."""

from __future__ import annotations

from collections.abc import Callable

from blocks.host.host import fingerprint_here
from blocks.storage.record_store import open_record_store
from tasks.core.settings import Settings
from tasks.core.stage import Artifact, Recorder, publish_nowhere


def open_recorder(settings: Settings, publish: Callable[[Artifact], None] = publish_nowhere) -> Recorder:
    """A recorder that writes to the store in the settings. Hosts with this host's fingerprint can use its results."""
    return Recorder(settings, open_record_store(settings), fingerprint_here(), publish)
