"""The recorder of this host's stages."""

from __future__ import annotations

from collections.abc import Callable

from blocks.host.host import fingerprint_here
from blocks.storage.record_store import open_record_store
from tasks.core.settings import Settings
from tasks.core.stage import Artifact, Recorder, publish_nowhere


def open_recorder(settings: Settings, publish: Callable[[Artifact], None] = publish_nowhere) -> Recorder:
    """Records go to the store that the settings name; a result holds for hosts like this one."""
    return Recorder(settings, open_record_store(settings), fingerprint_here(), publish)
