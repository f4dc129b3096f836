"""Print which `libcuda.so.1` the dynamic loader finds, and its CUDA version: one JSON document, or nothing.

Standard library only: `python -I find_cuda_library.py`. A child process, because a library that was loaded
stays loaded.
"""

import ctypes
import json
import sys
from pathlib import Path


def main() -> int:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    print(json.dumps({"path": mapped("libcuda.so"), "cuda": cuda_version(library)}))
    return 0


def mapped(name: str) -> "str | None":
    """Path of the mapped file of that name, as the kernel reports it after links and search paths."""
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and name in Path(fields[5]).name:
            return fields[5]
    return None


def cuda_version(library: ctypes.CDLL) -> "int | None":
    """`12080` for 12.8. Needs no GPU and does not initialise one."""
    number = ctypes.c_int()
    try:
        refused = library.cuDriverGetVersion(ctypes.byref(number))
    except AttributeError:
        return None
    return None if refused else number.value


if __name__ == "__main__":
    sys.exit(main())
