"""Start `trtllm-serve` on one model folder, under a name, with metrics. Runs inside the engine's environment.

That server calls a model by the name of its folder, takes a type and switches on its metrics from a file alone: so it
gets the model by a link of that name, and a file of options, both in a folder of its own that stays as long as it
runs. The next server removes it. This program becomes the server: signals reach it.

`tensorrt_llm_server.py --model FOLDER --alias NAME --program FILE [--dtype TYPE] …`: the rest goes to the server as
it is.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "slipway-trtllm-"
OPTIONS = "options.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--dtype")
    asked, others = parser.parse_known_args()
    sweep()
    # The process keeps its id when it becomes the server, so the next one can tell whether this folder is in use.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    link = folder / asked.alias
    link.symlink_to(asked.model.resolve())
    options = folder / OPTIONS
    options.write_text(json.dumps(options_for(asked.dtype)))
    arguments = [str(link), *others, "--extra_llm_api_options", str(options)]
    os.execvp(asked.program, [asked.program, *arguments])


def options_for(dtype: str | None) -> dict[str, object]:
    """What the file says; JSON is YAML. Without the first two there are no metrics."""
    found: dict[str, object] = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
    return {**found, "dtype": dtype} if dtype else found


def sweep() -> None:
    """Remove what servers left that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
