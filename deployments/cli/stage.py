"""`slipway stage`: copy models into verified shards, and verify them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deployments.cli.main import print_json
from deployments.cli.params import Count, GivenPath, Text
from deployments.cli.show import console
from tasks.core.progress import listen
from tasks.core.settings import Settings
from tasks.core.sources import FILE, scheme_of
from tasks.core.verdicts import StageName, StagingVerdict, says_no

if TYPE_CHECKING:
    from tasks.core.stage import Outcome
    from tasks.staging.models import StagingRequest, StagingResult


class ShardCount(click.ParamType[int | Literal["auto"]]):
    """`auto`, or a number from 1 to 10000."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """The number, or `auto`."""
        if value == "auto":
            return "auto"
        number: int = Count(1, 10_000).convert(value, param, ctx)
        return number


@click.group()
def stage() -> None:
    """Copy models into verified shards, and verify them."""


@stage.command()
@click.argument("source", metavar="SRC", type=Text())
@click.option("--to", "folder", required=True, type=GivenPath(), help="Folder to stage into.")
@click.option("--shards", type=ShardCount(), default="auto", show_default=True, help="Number of shards.")
@click.option(
    "--tensor-parallel",
    type=Count(1, 1024),
    default=1,
    show_default=True,
    help="Ranks that will load it: the automatic number of shards is a multiple of this.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def copy(
    source: str, folder: Path, shards: int | Literal["auto"], tensor_parallel: int, as_json: bool
) -> None:
    """Copy the model SRC into aligned shards with digests and a manifest.

    SRC is a folder, file:PATH, s3://BUCKET/PREFIX, hf:ORG/NAME@REVISION, oci://HOST/NAME:TAG or
    models:/NAME@ALIAS. Started again, it copies only what is missing or damaged.
    """
    from tasks.staging.models import StagingRequest

    outcome = _watched(
        StagingRequest(
            model=source if scheme_of(source) else f"{FILE}{source}",
            shards=shards,
            tensor_parallel=tensor_parallel,
            disk_benchmark=False,
            to=folder.absolute(),
            servable=False,
            convertible=False,
        )
    )
    if as_json:
        print_json(copy_answer(outcome))
    else:
        _print_copy(outcome)
    if outcome.says_no:
        sys.exit(3)


@stage.command()
@click.argument("folder", type=GivenPath())
@click.option("--repair", is_flag=True, help="Replace damaged parts from the source.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(folder: Path, repair: bool, as_json: bool) -> None:
    """Read every byte of a staged model again and compare it with the manifest.

    Fails while the folder is being written.
    """
    from tasks.core.manifest import read_manifest
    from tasks.core.manifest import verify as verify_folder
    from tasks.staging.store import at_rest

    repaired: tuple[str, ...] = ()
    if repair:
        from flows.stage_model import repaired_from_source

        manifest = read_manifest(folder)
        result = repaired_from_source(folder.absolute()).result
        repaired, damaged = result.restaged, result.damaged
    else:
        with at_rest(folder.absolute(), Settings.load()):
            manifest, damaged = verify_folder(folder)
    verdict = StagingVerdict.CORRUPT if damaged else StagingVerdict.VERIFIED
    if as_json:
        answer = {"verdict": verdict, "files": len(manifest.files), "bytes": manifest.size_bytes}
        answer |= {"damaged": list(damaged), "manifest_digest": manifest.digest}
        print_json(answer | ({"repaired": list(repaired)} if repair else {}))
    else:
        click.echo(f"{verdict}: {len(manifest.files)} files, {manifest.size_bytes / 1e6:.1f} MB in {folder}")
        for path in damaged:
            click.echo(f"  missing or damaged: {path}" + (", also at the source" if repair else ""))
        for path in repaired:
            click.echo(f"  repaired from {manifest.source}: {path}")
    if says_no(StageName.STAGING, verdict):
        sys.exit(3)


@stage.command()
@click.argument("folder", type=GivenPath())
@click.option(
    "--to", "store", required=True, type=GivenPath(), help="Ollama's models folder (OLLAMA_MODELS)."
)
@click.option("--name", required=True, type=Text(), metavar="NAME[:TAG]", help="The model's name in Ollama.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def ollama(folder: Path, store: Path, name: str, as_json: bool) -> None:
    """Give the GGUF file of the staged model in FOLDER to Ollama.

    The file is linked, not copied, if both are on the same disk.
    """
    from tasks.staging.blobs import export_to_ollama

    done = export_to_ollama(folder.absolute(), store.absolute(), name)
    if as_json:
        print_json(
            {"manifest": str(done.manifest), "blob": str(done.blob), "copied_bytes": done.copied_bytes}
        )
        return
    how = f"{done.copied_bytes / 1e6:.1f} MB copied" if done.copied_bytes else "nothing copied"
    click.echo(f"{name} is {done.blob} ({how})")
    click.echo(f"  manifest {done.manifest}")


@stage.command()
@click.option("--limit", required=True, metavar="SIZE", help="Space that staged models may take, e.g. 500Gi.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def gc(limit: str, dry_run: bool, as_json: bool) -> None:
    """Remove staged models and their candidates, the least recently used first, until the rest is below the limit.

    Models that a release names, that a run uses, or that were used within the last hour are kept.
    SLIPWAY_MODELS_LIMIT applies the same limit whenever a model is staged.
    """
    from blocks.processes.environment_users import running_below
    from tasks.core.spec_values import parse_size
    from tasks.staging.store import collect, list_models

    try:
        limit_bytes = parse_size(limit)
    except ValueError as error:
        raise click.BadParameter(f"{limit!r} is not {error}", param_hint="--limit") from None
    settings = Settings.load()
    gone = collect(settings, running_below, limit_bytes=limit_bytes, dry_run=dry_run)
    kept = [model for model in list_models(settings, running_below) if model not in gone]
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "removed": [{"folder": str(one.folder), "size_bytes": one.size_bytes} for one in gone],
                "kept": [
                    {"folder": str(one.folder), "size_bytes": one.size_bytes, "in_use": one.holder or None}
                    for one in kept
                ],
            }
        )
        return
    for one in gone:
        click.echo(f"{'would remove' if dry_run else 'removed'} {one.folder} ({one.size_bytes / 1e6:.1f} MB)")
    for one in kept:
        why = f": {one.holder}" if one.holder else ""
        click.echo(f"kept {one.folder} ({one.size_bytes / 1e6:.1f} MB){why}")


def _watched(request: StagingRequest) -> Outcome[StagingResult]:
    """Stage it, with progress on standard error."""
    from deployments.cli.progress import show_progress
    from flows.stage_model import stage_model

    with show_progress(console(stderr=True)) as listener:
        listen(listener)
        return stage_model.plain(request)


def copy_answer(outcome: Outcome[StagingResult]) -> dict[str, object]:
    """The JSON document: what the folder holds, and what this run did."""
    from tasks.core.manifest import MANIFEST_FILE, Manifest

    result = outcome.result
    shards = () if result.damaged else Manifest.read(result.model_dir).shards
    return {
        "bytes": result.size_bytes,
        "seconds": outcome.seconds,
        "shards": [
            {"file": shard.path, "bytes": shard.size_bytes, "digest": shard.digest} for shard in shards
        ],
        "manifest": str(result.model_dir / MANIFEST_FILE),
        "manifest_digest": result.manifest_digest,
        "verdict": outcome.verdict,
        "cached": outcome.cached,
        "copied_bytes": 0 if outcome.cached else result.copied_bytes,
        "restaged": [] if outcome.cached else list(result.restaged),
        "damaged": list(result.damaged),
        "findings": list(result.findings),
        "record": outcome.record,
    }


def _print_copy(outcome: Outcome[StagingResult]) -> None:
    result = outcome.result
    done = "already there, verified" if outcome.cached else outcome.headline
    click.echo(f"{outcome.verdict}: {done} ({outcome.seconds:.1f} s)")
    click.echo(f"  folder   {result.model_dir}")
    click.echo(f"  manifest {result.manifest_digest}")
    for finding in () if outcome.cached else result.findings:
        click.echo(f"  - {finding}")
