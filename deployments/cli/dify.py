"""`slipway dify`: register a service with a Dify server, or remove it there. Works without Prefect, unless one of its
blocks has the account or the service's keys."""

from __future__ import annotations

import os

import click

from deployments.cli.main import print_json
from tasks.core.errors import WrongUseError
from tasks.core.model_task import Task

PASSWORD = "SLIPWAY_DIFY_PASSWORD"
"""The password comes from the environment, because every user of the host can see a command line."""


@click.group()
def dify() -> None:
    """Register services with a Dify server, for workflows on top of them."""


@dify.command()
@click.argument("name")
@click.option("--console", help="Address of Dify's console, e.g. https://dify.example.")
@click.option("--email", help=f"Account there; its password is read from {PASSWORD}.")
@click.option("--block", help="Prefect block `Slipway Dify console` with address and account.")
@click.option(
    "--endpoint", help="Address under which Dify reaches the service; by default the service's own."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def register(
    name: str, console: str | None, email: str | None, block: str | None, endpoint: str | None, as_json: bool
) -> None:
    """Register the service NAME as an OpenAI-compatible model; exit code 3 unless Dify calls it active.

    Dify gets the first of the service's keys, if it needs one.
    """
    from blocks.applications.dify import DifyApi
    from blocks.services.door import keys_in
    from tasks.core.release import ServiceFolder
    from tasks.core.settings import Settings

    state, release = ServiceFolder(Settings.load().services, name).serving()
    if (task := release.config.task) is not Task.GENERATE:
        raise WrongUseError(
            f"{name} serves a model for {task}, and `slipway dify register` registers models that generate text",
            fix=f"add it in Dify's console as an OpenAI-API-compatible model: {endpoint or state.endpoint}/v1",
        )
    address, account, password = _account(console, email, block)
    secret = release.spec.serving.api_key
    key = keys_in(secret)[0] if secret else None
    with DifyApi(address) as api:
        api.log_in(account, password)
        status = api.register(
            release.config.served_name, endpoint or state.endpoint, context=release.config.context, key=key
        )
    if as_json:
        print_json(
            {"name": name, "console": address, "endpoint": endpoint or state.endpoint, "status": status}
        )
    else:
        click.echo(f"{name} is {status} in Dify at {address}")
    if status != "active":
        click.get_current_context().exit(3)


def _account(console: str | None, email: str | None, block: str | None) -> tuple[str, str, str]:
    if block is not None:
        from blocks.applications.dify_console import load_console

        found = load_console(block)
        return found.address, found.email, found.password.get_secret_value()
    password = os.environ.get(PASSWORD)
    if console is None or email is None or not password:
        raise WrongUseError(
            "Dify's address and account are missing",
            fix=f"give --console and --email, and the password in {PASSWORD}; or --block",
        )
    return console, email, password
