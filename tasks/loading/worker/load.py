"""Load the tensors of some files with one loader, and measure that. Runs in any Python that has the loader.

`python load.py LOADER [--digest] [--huge-pages] FILE…` prints one JSON document. A model counts as loaded when one
byte of each page of its tensors has been read: an engine does at least that much. All tensors are kept until
then. The digest of all bytes is computed after the clock has stopped. Huge pages are for the prefetch. A GGUF
file counts as one tensor.
"""

import ctypes
import hashlib
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

PAGE = 4096
THREADS = 16
"""Threads of the loaders that read in parallel: the default of both."""

PIECE = 64 << 20
PREFETCH_THREADS = 8
POPULATE_READ = 22

Tensors = dict[str, memoryview]


def main() -> None:
    loader, *rest = sys.argv[1:]
    files = [name for name in rest if not name.startswith("--")]
    load = prepare(loader, huge_pages="--huge-pages" in rest)
    before = status("RssAnon")
    cpu, start = time.process_time(), time.monotonic()
    tensors = load(files)
    for view in tensors.values():
        view[::PAGE].tobytes()
    end = time.monotonic()
    answer = {
        "seconds": end - start,
        "cpu_s": time.process_time() - cpu,
        "size_bytes": sum(len(view) for view in tensors.values()),
        "anonymous_bytes": max(0, status("RssAnon") - before),
        "peak_bytes": status("VmHWM"),
        "digest": digest_of(tensors) if "--digest" in rest else None,
    }
    print(json.dumps(answer), flush=True)
    os._exit(0)  # without the libraries' clean-up, which can take seconds or crash


def prepare(loader: str, *, huge_pages: bool) -> Callable[[list[str]], Tensors]:
    """The loader, imported beforehand: its start-up does not count."""
    if loader == "safetensors":
        import torch  # noqa: F401 - safetensors would import it with the first tensor
        from safetensors import safe_open

        return lambda files: by_safetensors(files, safe_open)
    if loader == "fastsafetensors":
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        return lambda files: by_fastsafetensors(files, SafeTensorsFileLoader, SingleGroup)
    if loader == "runai_streamer":
        os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", str(THREADS))
        from runai_model_streamer import SafetensorsStreamer

        return lambda files: by_runai_streamer(files, SafetensorsStreamer)
    return partial(by_prefetch, huge_pages=huge_pages) if loader == "prefetch" else by_mmap


def by_prefetch(files: list[str], *, huge_pages: bool) -> Tensors:
    """A memory map that threads fill meanwhile, as `blocks/host/prefetch.py` does for an engine."""
    pieces = iter([(name, at) for name in files for at in range(0, Path(name).stat().st_size, PIECE)])
    lock = threading.Lock()
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def fill() -> None:
        while True:
            with lock:
                name, at = next(pieces, (None, 0))
            if name is None:
                return
            with Path(name).open("rb", buffering=0) as file:
                size = min(PIECE, os.fstat(file.fileno()).st_size - at)
                address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), at)
                if huge_pages:
                    libc.madvise(address, size, mmap.MADV_HUGEPAGE)
                if libc.madvise(address, size, POPULATE_READ):  # a kernel before 5.14
                    os.posix_fadvise(file.fileno(), at, size, os.POSIX_FADV_WILLNEED)
                libc.munmap(address, size)

    for _ in range(PREFETCH_THREADS):
        threading.Thread(target=fill, daemon=True).start()
    return by_mmap(files)


def by_mmap(files: list[str]) -> Tensors:
    tensors: Tensors = {}
    for name in files:
        with Path(name).open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        if name.endswith(".gguf"):
            tensors[Path(name).name] = view
            continue
        data = 8 + int.from_bytes(view[:8], "little")
        header = json.loads(view[8:data].tobytes())
        for key, entry in header.items():
            if key != "__metadata__":
                first, last = entry["data_offsets"]
                tensors[key] = view[data + first : data + last]
    return tensors


def by_safetensors(files, safe_open) -> Tensors:
    tensors: Tensors = {}
    for name in files:
        with safe_open(name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensors[key] = bytes_of(file.get_tensor(key))
    return tensors


def by_fastsafetensors(files, file_loader, single_group) -> Tensors:
    loader = file_loader(single_group(), "cpu", max_threads=THREADS, nogds=True)
    loader.add_filenames({0: files})
    buffers = loader.copy_files_to_device()
    KEPT.extend((loader, buffers))
    return {key: bytes_of(buffers.get_tensor(key)) for key in loader.get_keys()}


def by_runai_streamer(files, streamer) -> Tensors:
    with streamer() as stream:
        stream.stream_files(files)
        return {key: bytes_of(tensor) for key, tensor in stream.get_tensors()}


KEPT: list[object] = []
"""The object that owns the memory of the tensors."""


def bytes_of(tensor) -> memoryview:
    """The memory of a contiguous torch tensor, whatever its element type."""
    tensor = tensor.contiguous()
    KEPT.append(tensor)
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def digest_of(tensors: Tensors) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(json.dumps([name, len(tensors[name])]).encode())
        state.update(hashlib.sha256(tensors[name]).digest())
    return "sha256:" + state.hexdigest()


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) << 10


if __name__ == "__main__":
    main()
