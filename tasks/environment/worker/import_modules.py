"""Import modules one after the other and print the result: one JSON line per module, flushed at once.

Runs inside the environment under proof, standard library only: `python -I import_modules.py MODULE …`. Native
code may kill the interpreter; then the module whose line is missing did it.
"""

import importlib
import json
import os
import sys
import time


def main() -> int:
    # What modules print while imported goes to standard error; standard output is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in sys.argv[1:]:
        start = time.monotonic()
        reason = reason_of_failure(module)
        answer = {
            "module": module,
            "ok": reason is None,
            "seconds": time.monotonic() - start,
            "reason": reason,
        }
        print(json.dumps(answer), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # some native libraries crash when the interpreter exits; only the imports count


def reason_of_failure(module: str) -> "str | None":
    try:
        importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001 - whatever a foreign module raises is the answer
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
