"""Whether a release's command is the one that Slipway itself would build from the decisions in the release."""

from __future__ import annotations

from pathlib import Path

from tasks.core.engine_options import check_variables
from tasks.core.errors import WrongUseError
from tasks.core.release import Release
from tasks.engines.arguments import check_arguments
from tasks.engines.catalogue import get_engine


def check_launch(release: Release, scripts: Path) -> None:
    """Raise `WrongUseError` unless engine, environment, model and configuration alone give the command and its
    variables: a release that comes through the API may say what is served, not what is run.

    `scripts` is the folder in the home with the scripts that start engines, one folder for each
    version of them.
    """
    engine = get_engine(release.engine)
    check_arguments(release.engine, release.config.engine_args)
    check_variables(release.config.engine_env)
    python = release.environment_path / "bin" / "python"
    worker = next(
        (word for word in release.launch.argv if _is_script_in(word, scripts, engine.server_worker)), None
    )
    made = engine.command(str(python), str(worker), str(release.launch.model_file), release.config)
    if (made.argv, dict(made.env)) != (release.launch.argv, dict(release.launch.env)):
        raise WrongUseError(
            f"the release's command is not the one that this version builds for {release.engine}",
            fix="deploy its spec again",
        )


def _is_script_in(word: str, scripts: Path, own: Path | None) -> bool:
    path = Path(word)
    return (
        own is not None
        and path.name == own.name
        and path.parent.parent == scripts
        and path.parent.name != ".."
    )
