"""Serve one model folder by `transformers serve`, under a name. Runs inside the engine's environment.

That server knows its model by the path alone, and refuses every other name: so it loads the model where the name is
a path, from a folder with a link, which is gone before it serves. Ends with 0 after SIGTERM once no request is in
flight.

`transformers_server.py --model FOLDER --alias NAME … [--chat-template FILE] …`: the rest goes to the server as it is.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from transformers import PreTrainedModel
from transformers.cli.transformers import main as transformers

PREFIX = "slipway-name-"
TEMPLATE = "chat_template.jinja"
CLOSED = {"/reset", "/load_model"}
"""They let any client unload the model, which is not loaded again."""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--alias", required=True, action="append")
    parser.add_argument("--chat-template", type=Path)
    asked, others = parser.parse_known_args()
    # The server raises the signal once more when it is done: by then it only has to end this process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    sweep()
    refuse_what_is_missing()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        name, *more = asked.alias
        link(asked.model.resolve(), folder / name, asked.chat_template)
        os.chdir(folder)
        uvicorn.Server = once_loaded(folder, name, more)
        sys.argv = ["transformers", "serve", name, *others]
        transformers()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_what_is_missing() -> None:
    """End this process when the library finds no values for some weights: it would serve random ones."""
    finish = getattr(PreTrainedModel, "_finalize_model_loading", None)
    if finish is None:
        return  # before Transformers 5

    def finish_whole(*arguments: Any) -> Any:
        loaded = finish(*arguments)
        missing = sorted(loaded.missing_keys)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            sys.exit(f"the model is not whole: its files have no {missing[0]}{more}")
        return loaded

    PreTrainedModel._finalize_model_loading = staticmethod(finish_whole)  # type: ignore[method-assign]


def link(model: Path, name: Path, template: Path | None) -> None:
    """The model's folder under that name, with another chat template if there is one.

    The server has no option for it, and what is in this file comes before what other files of the model say.
    """
    if template is None:
        name.symlink_to(model)
        return
    name.mkdir()
    for path in model.iterdir():
        if path.name != TEMPLATE:
            Path(name, path.name).symlink_to(path)
    shutil.copyfile(template, name / TEMPLATE)


def sweep() -> None:
    """Remove what servers left that were killed while they loaded."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def once_loaded(folder: Path, name: str, more: list[str]) -> type[uvicorn.Server]:
    """A server that removes the folder when it starts, so that being killed from then on leaves nothing.

    It also answers under the names in `more`.
    """

    class Server(uvicorn.Server):
        def run(self, *arguments: Any) -> None:
            os.chdir("/")
            shutil.rmtree(folder)
            routes: list[Any] = self.config.app.router.routes  # type: ignore[union-attr]
            routes[:] = [route for route in routes if route.path not in CLOSED]
            if more:
                self.config.app = Renaming(self.config.app, name, set(more))
            super().run(*arguments)

    return Server


class Renaming:
    """Requests for other names of the model, as the server knows it: it refuses every other name."""

    def __init__(self, app: Any, name: str, others: set[str]) -> None:
        self.app, self.name, self.others = app, name, others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body, more = body + message.get("body", b""), message.get("more_body", False)
        renamed = self.renamed(body)
        headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(renamed)).encode())]}
        whole = iter([{"type": "http.request", "body": renamed, "more_body": False}])

        async def once() -> Any:
            return next(whole, None) or await receive()

        await self.app(scope, once, send)

    def renamed(self, body: bytes) -> bytes:
        try:
            asked = json.loads(body)
        except ValueError:
            return body
        if not isinstance(asked, dict) or asked.get("model") not in self.others:
            return body
        return json.dumps({**asked, "model": self.name}).encode()


if __name__ == "__main__":
    main()
