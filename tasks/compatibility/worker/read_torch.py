"""Print which torch is installed and for which CUDA it was built: one JSON document.

Runs inside the environment, standard library only: `python -I read_torch.py`. `torch.version` is a file of a few
constants. It is run by itself, because importing torch takes seconds, and fails if its libraries fail.
"""

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path


def main() -> int:
    # What foreign code prints meanwhile goes to standard error; the answer keeps the real output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = read()
    except BaseException as error:  # noqa: BLE001 - whatever a foreign file raises is the answer
        found = {"fault": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    json.dump(found, answer)
    answer.close()
    return 0


def read() -> "dict[str, object]":
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {"fault": "torch is in the list of packages but cannot be found"}
    constants = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return {"version": str(constants["__version__"]), "cuda": constants["cuda"]}


if __name__ == "__main__":
    sys.exit(main())
