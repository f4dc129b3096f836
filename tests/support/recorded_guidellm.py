#!/usr/bin/env python3
"""Stands where the Python of guidellm's environment would: writes a recorded report instead of running a load.

Called as `PYTHON run_guidellm.py run …`; a folder with `report.json` beside this file holds what to write, `status` what to
end with. Each call is noted in `calls`.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).parent


def main() -> int:
    options = dict(zip(sys.argv[3:-1:2], sys.argv[4:-1:2], strict=True))
    with (HERE / "calls").open("a") as calls:
        print(json.dumps({"argv": sys.argv[1:], "offline": os.environ.get("HF_HUB_OFFLINE")}), file=calls)
    report = HERE / "report.json"
    if report.exists():
        Path(json.loads(options["--output"])["path"]).write_text(report.read_text())
    status = HERE / "status"
    if status.exists():
        print("ValueError: no such tokenizer", file=sys.stderr)
        return int(status.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
