"""Serve one model folder by `transformers serve`, under a name. Runs inside the engine's environment.

That server knows its model by the path alone, and refuses every other name: so it loads the model where the name is
a path, from a folder with a link, which is gone before it serves. Ends with 0 after SIGTERM once no request is in
flight.

`transformers_server.py --model FOLDER --alias NAME …`: what follows goes to `transformers serve` as it is.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import uvicorn
from transformers.cli.transformers import main as transformers


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--alias", required=True)
    asked, others = parser.parse_known_args()
    # The server raises the signal once more when it is done: by then it only has to end this process.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
        link = Path(folder, asked.alias)
        link.symlink_to(asked.model.resolve())
        os.chdir(folder)
        uvicorn.Server = once_loaded(link)
        sys.argv = ["transformers", "serve", asked.alias, *others]
        transformers()


def once_loaded(link: Path) -> type[uvicorn.Server]:
    """A server that removes the link and its folder when it starts: an engine that is killed leaves nothing."""

    class Server(uvicorn.Server):
        def run(self, *arguments: object) -> None:
            os.chdir("/")
            link.unlink()
            link.parent.rmdir()
            super().run(*arguments)

    return Server


if __name__ == "__main__":
    main()
