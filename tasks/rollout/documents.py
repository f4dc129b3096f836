"""What a rollout writes into the service's folder."""

from __future__ import annotations

from datetime import UTC, datetime

from tasks.core.errors import RecordError
from tasks.core.files import PART, write_atomically
from tasks.core.release import Release, ServiceFolder, ServiceState


def sweep_documents(folder: ServiceFolder) -> None:
    """Remove unfinished documents of a rollout that was killed while it wrote; never another process' own."""
    unfinished = [
        *folder.root.glob(f"{folder.state_file.name}.*{PART}"),
        *folder.root.glob(f"{folder.last_file.name}.*{PART}"),
        *folder.root.glob(f"releases/*{PART}"),
    ]
    for part in unfinished:
        part.unlink(missing_ok=True)


def is_kept(release: Release, folder: ServiceFolder) -> bool:
    """Whether the release's document is there, and can be read."""
    try:
        return folder.release(release.id) is not None
    except RecordError:
        return False


def write_document(release: Release, folder: ServiceFolder) -> None:
    write_atomically(folder.release_file(release.id), release.document())


def write_state(release: Release, folder: ServiceFolder, host: str, port: int, previous: str | None) -> None:
    """Say what serves, twice: the copy outlives a stop, and replaces a damaged `current.json`."""
    state = ServiceState(
        name=release.name,
        target=release.target,
        host=host,
        port=port,
        release=release.id,
        previous=previous,
        since=datetime.now(UTC),
    )
    for file in (folder.state_file, folder.last_file):
        write_atomically(file, state.model_dump_json(by_alias=True, indent=1))
