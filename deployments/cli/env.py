"""`slipway env`: lock requirements, build what a lock pins, check and prove what is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from blocks.packages.inspect_environment import conflicts_of_lock, inspect_environment
from deployments.cli.main import print_json
from deployments.cli.params import GivenPath, Number
from deployments.cli.show import plain, print_table
from tasks.core.errors import NotFoundError, SpecError
from tasks.core.given_files import LOCK_LIMIT_BYTES, check_new_folder, decode_text, read_given, write_given
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EnvironmentManager
from tasks.core.spec_sections import OWN_PYTHON, Environment
from tasks.core.verdicts import EnvironmentVerdict, StageName, says_no
from tasks.environment import apply, dependencies, plan
from tasks.environment.models import Built, Checked, Conflict, EnvironmentRequest, LockRequest, Proof, Refusal
from tasks.environment.refusals import format_chain
from tasks.environment.report import what_to_do

if TYPE_CHECKING:
    from blocks.engine.trial import EnvironmentTrial
    from blocks.packages.uv import Uv

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_WHEELS = click.option(
    "--wheels", type=GivenPath(), help="Folder of wheels to install from; no index is used."
)


@click.group()
def env() -> None:
    """Lock, build and check environments."""


@env.command()
@click.argument("requirements", type=GivenPath())
@click.option("-o", "--output", required=True, type=GivenPath(), help="Where the lock goes.")
@click.option("--python", default=OWN_PYTHON, show_default=True, help="Python version, such as 3.11.")
@click.option("--exclude-newer", help="Ignore packages published after this date (RFC 3339).")
@click.option(
    "--manager",
    type=click.Choice([EnvironmentManager.UV.value, EnvironmentManager.CONDA.value]),
    default=EnvironmentManager.UV.value,
    show_default=True,
    help="What makes the environment; conda's requirements are match specs.",
)
@click.option("--torch-backend", help="Build of torch: cpu, cu126 …; auto: the newest for this host.")
@click.option(
    "--channel", "channels", multiple=True, help="Channel of conda packages; the first has priority."
)
@_WHEELS
@_AS_JSON
def lock(requirements: Path, output: Path, as_json: bool, **asked: Any) -> None:
    """Pin REQUIREMENTS, one per line, with hashes. Exit code 3 if no set of versions satisfies all."""
    from blocks.engine.torch_backend import decide_backend
    from blocks.host.host import ThisHost
    from blocks.packages.managers import open_manager

    text = _read(requirements, "requirements file")
    environment = _environment(text, str(requirements), asked)
    tool = open_manager(environment.manager)
    decided = decide_backend(EnvironmentRequest(environment=environment), ThisHost()).environment
    request = plan.make_lock_request(environment.requirements, tool.platform, decided)
    answer = apply.lock(request, tool, Settings.load())
    if isinstance(answer, Refusal):
        _refuse(answer, as_json)
        return
    write_given(output, answer.path.read_bytes())
    found = answer.request
    known = conflicts_of_lock(answer.packages, getattr(tool, "glibc", None))
    if as_json:
        print_json(
            {
                "conflicts": [one.model_dump() for one in known],
                "path": str(output.absolute()),
                "digest": answer.digest,
                "packages": answer.packages,
                **found.model_dump(mode="json", include={"python", "platform", "manager", "torch_backend"}),
            }
        )
        return
    click.echo(
        f"{len(answer.packages)} packages pinned for Python {found.python} on {found.platform}: {output}"
    )
    for one in known:
        click.echo(f"warning: {'this set is known to fail: ' if one.severity == 'block' else ''}{one.reason}")
        click.echo(f"  what to do: {one.fix}")


def _environment(text: str, source: str, asked: dict[str, Any]) -> Environment:
    """The environment that options and a requirements file describe. Raises `SpecError`."""
    if asked["manager"] == EnvironmentManager.CONDA:
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        wanted = tuple(line for line in lines if line)
    else:
        wanted = plan.parse_requirements(text, source)
    try:
        return Environment.model_validate({**asked, "requirements": wanted})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{piece}: " for piece in first["loc"])
        raise SpecError(
            where + first["msg"].removeprefix("Value error, "), fix="see slipway env lock --help"
        ) from None


@env.command()
@click.argument("lock_file", metavar="LOCK", type=GivenPath())
@click.option("--into", type=GivenPath(), help="The environment's folder; by default in SLIPWAY_HOME.")
@_WHEELS
@_AS_JSON
def build(lock_file: Path, into: Path | None, wheels: Path | None, as_json: bool) -> None:
    """Install the packages in LOCK into a new environment, then check and prove it as `env check` does."""
    from blocks.packages.managers import open_manager

    uv, trial = _tools()
    _read(lock_file, "lock")
    if into is not None:
        check_new_folder(into.absolute())
    here = LockRequest(requirements=(), python=OWN_PYTHON, platform=uv.platform)
    locked = apply.read_locked(lock_file.absolute(), here)
    if wheels is not None:
        request = locked.request.model_copy(update={"wheels": wheels.absolute()})
        locked = locked.model_copy(update={"request": request})
    built = apply.build(locked, open_manager(locked.request.manager), trial, Settings.load(), into)
    checked, proven = inspect_environment(built.python_path, uv, trial)
    _answer(checked, proven, as_json, built)


@env.command()
@click.argument("lock_file", metavar="LOCK", type=GivenPath())
@click.option("-o", "--output", type=GivenPath(), help="File to write to; by default standard output.")
def bom(lock_file: Path, output: Path | None) -> None:
    """Write the bill of materials of LOCK in CycloneDX 1.6 JSON."""
    from blocks.packages.bill_of_materials import bill_of_materials
    from tasks.environment.locks import read_lock

    text = bill_of_materials(read_lock(_read(lock_file, "lock"), str(lock_file)))
    if output is None:
        click.echo(text)
        return
    write_given(output, text + "\n")
    click.echo(f"{output}")


@env.command()
@click.option(
    "--unused-for",
    type=Number(0, 36_500),
    default=14,
    show_default=True,
    help="Days for which an environment must have been unused.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@_AS_JSON
def gc(unused_for: float, dry_run: bool, as_json: bool) -> None:
    """Remove environments that no release uses, and that nothing has used for a while."""
    from blocks.processes.environment_users import running_below
    from tasks.environment.garbage import collect

    gone = collect(Settings.load(), running_below, keep_s=unused_for * 86_400, dry_run=dry_run)
    if as_json:
        print_json({"removed": [one.model_dump(mode="json") for one in gone], "dry_run": dry_run})
        return
    for one in gone:
        click.echo(
            f"{'would remove' if dry_run else 'removed'} {one.path} ({one.size_bytes / 1e6:.0f} MB): {one.reason}"
        )
    freed = sum(one.size_bytes for one in gone)
    count = f"{len(gone)} environment{'' if len(gone) == 1 else 's'}"
    click.echo(f"{count}, {freed / 1e6:.0f} MB{' would be freed' if dry_run else ' freed'}")


@env.command()
@click.argument("environment", metavar="ENV", type=GivenPath())
@_AS_JSON
def check(environment: Path, as_json: bool) -> None:
    """Look for conflicts in the environment ENV, import its modules, and start the engine in it."""
    uv, trial = _tools()
    python = environment.absolute() / "bin" / "python"
    if not python.exists():
        raise NotFoundError(
            f"{environment} is not a Python environment", fix="name a folder that contains bin/python"
        )
    checked, proven = inspect_environment(python, uv, trial)
    _answer(checked, proven, as_json)


def _tools() -> tuple[Uv, EnvironmentTrial]:
    """Imported late: `slipway env --help` needs neither."""
    from blocks.engine.trial import EnvironmentTrial
    from blocks.packages.uv import Uv

    return Uv(), EnvironmentTrial()


def _read(path: Path, what: str) -> str:
    content = read_given(path, what, limit_bytes=LOCK_LIMIT_BYTES, fix="give the path of a file")
    return decode_text(content, f"the {what} {path}")


def _answer(checked: Checked, proven: Proof, as_json: bool, built: Built | None = None) -> None:
    verdict, reason = plan.judge(checked.conflicts, proven)
    if as_json:
        document: dict[str, Any] = {
            "verdict": verdict,
            "reason": reason,
            "conflicts": [one.model_dump() for one in checked.conflicts],
            "proof": proven.model_dump(mode="json"),
            "packages": checked.packages,
            "required_by": dependencies.reverse_listing(checked.dependencies, checked.packages),
        }
        if built:
            document["environment"] = built.model_dump(mode="json", exclude={"packages"})
        print_json(document)
    else:
        _print(verdict, reason, checked, proven, built)
    if says_no(StageName.ENVIRONMENT, verdict):
        sys.exit(3)


def _refuse(refusal: Refusal, as_json: bool) -> None:
    verdict = EnvironmentVerdict.CONFLICTING
    if as_json:
        print_json({"verdict": verdict, **refusal.model_dump(mode="json")})
    else:
        click.echo(f"{verdict}: {refusal.reason}")
        _print_conflicts(refusal.conflicts)
        for chain in refusal.chains:
            click.echo(format_chain(chain))
        if refusal.loosen or refusal.python or refusal.remarks:
            way = what_to_do(refusal.conflicts, refusal.loosen, refusal.python, refusal.remarks)
            click.echo(f"way out: {way}")
    sys.exit(3)


def _print(
    verdict: EnvironmentVerdict, reason: str | None, checked: Checked, proven: Proof, built: Built | None
) -> None:
    if built:
        click.echo(f"{built.path}: {len(built.packages)} packages, Python {built.python_version}")
    _print_conflicts(checked.conflicts)
    for one in proven.imports:
        click.echo(f"import {one.module}: {'works' if one.ok else one.reason}")
    for computation in proven.computations:
        click.echo(f"{computation.what}: {'works' if computation.ok else computation.reason}")
    if proven.engine:
        engine = proven.engine
        what = (
            f"first completion after {engine.start_s:.2f} s" if engine.start_s is not None else engine.reason
        )
        click.echo(f"engine: {what}")
    click.echo(f"{verdict}: {reason}" if reason else str(verdict))


def _print_conflicts(conflicts: tuple[Conflict, ...]) -> None:
    if not conflicts:
        return
    rows = [
        (
            one.package,
            one.rule or one.required_by or "you",
            one.reason or one.requirement or "",
            one.installed or "none",
        )
        for one in conflicts
    ]
    print_table(
        ("package", "asked for, or found, by", "as", "installed"),
        [[plain(cell) for cell in row] for row in rows],
    )
