"""Whether a release's command is the one that Slipway itself would make of what was decided."""

from __future__ import annotations

from tasks.core.errors import WrongUseError
from tasks.core.release import Release
from tasks.engines.catalogue import get_engine


def check_launch(release: Release) -> None:
    """Raise `WrongUseError` unless engine, environment, model and configuration alone give the command and its
    variables: a release that comes by API may say what is served, not what is run."""
    engine = get_engine(release.engine)
    python = release.environment_path / "bin" / "python"
    made = engine.command(
        str(python), str(engine.server_worker), str(release.launch.model_file), release.config
    )
    if (made.argv, dict(made.env)) != (release.launch.argv, dict(release.launch.env)):
        raise WrongUseError(
            f"the release's command is not the one that this version makes for {release.engine}",
            fix="deploy its spec again",
        )
