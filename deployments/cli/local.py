"""`slipway up` and `slipway down`."""

from __future__ import annotations

import click

from deployments.cli.main import print_json
from deployments.cli.params import Count
from deployments.cli.show import console
from tasks.core.progress import listen
from tasks.core.settings import Settings


@click.command()
@click.option("--port", type=Count(1, 65535), help="Port of the server; by default 4200, or a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def up(port: int | None, as_json: bool) -> None:
    """Start a local Prefect server and a worker, and register the deployments. May be repeated."""
    from deployments import local
    from deployments.cli.progress import show_progress
    from deployments.cli.service import services_down

    with show_progress(console(stderr=as_json)) as listener:
        listen(listener)
        state = local.start(Settings.load(), port)
        names = local.deployment_names()
        down = services_down(Settings.load())
    server = state.api_url.removesuffix("/api")
    if as_json:
        down_names = [row["name"] for row in down]
        print_json({"server": server, "gateway": None, "deployments": names, "down": down_names})
        return
    click.echo(f"server       {server}")
    for name in names:
        click.echo(f"deployment   {name}")
    for row in down:
        click.echo(
            f"down         {row['name']} (at once: {row['way_out']}; the worker tries within a minute)"
        )
    click.echo("look next    slipway ui | slipway down")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def down(as_json: bool) -> None:
    """End the local server and worker. Services keep running."""
    from deployments import local

    ended = local.stop(Settings.load())
    if as_json:
        print_json({"ended": ended})
        return
    click.echo(f"ended {' and '.join(ended)}" if ended else "nothing was running")
