"""Serve a GGUF file, or a folder with its parts, with llama.cpp's own server. Runs inside the engine's environment.

Ends with 0 after SIGTERM once no request is in flight, with 1 when it cannot start.
llama.cpp cuts requests on SIGTERM, so this process drains first: it must be out of the traffic before.
"""

import argparse
import contextlib
import os
import resource
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

import xllamacpp

DRAIN_S = 30.0
POLL_S = 0.05
HTTP_THREADS = 256
SAYS_WHAT_IT_FITTED = 4
"""llama.cpp's verbosity at which its log tells of the fit and of the layers on GPUs; 3 is its own."""


def main() -> int:
    arguments = parse_arguments()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = xllamacpp.Server(parameters(arguments))
    except RuntimeError as error:
        print(f"llama.cpp could not start: {error}", file=sys.stderr, flush=True)
        return 1
    while not stop.wait(0.5):
        pass
    drain(f"http://{arguments.host}:{arguments.port}/metrics")
    # The library's own shutdown can hang for a minute on open connections; nothing is left to be saved here.
    del server
    os._exit(0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens over all slots")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--gpu-layers", type=int, default=0, help="-1: as many as there is room for")
    parser.add_argument(
        "--memory-fraction", type=float, default=1.0, help="of the GPUs, if layers are fitted"
    )
    parser.add_argument("--batch-tokens", type=int, help="of a step, over all slots")
    parser.add_argument("--micro-batch-tokens", type=int, help="computed at once")
    return parser.parse_args()


def parameters(arguments: argparse.Namespace) -> "xllamacpp.CommonParams":
    params = xllamacpp.CommonParams()
    params.model.path = first_part(Path(arguments.model))
    params.model_alias = {arguments.alias}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.context
    params.n_gpu_layers = arguments.gpu_layers
    params.n_batch = arguments.batch_tokens or params.n_batch
    params.n_ubatch = arguments.micro_batch_tokens or params.n_ubatch
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.n_threads_http = http_threads(arguments.slots)
    params.endpoint_metrics = True
    params.cache_ram_mib = 0
    params.fit_params = arguments.gpu_layers < 0
    if params.fit_params:
        params.fit_params_target = kept_free(arguments.memory_fraction, params.fit_params_target)
        params.verbosity = SAYS_WHAT_IT_FITTED
    params.ui = False
    params.warmup = True
    return params


def first_part(model: Path) -> str:
    """The file to load: of a model in several files, llama.cpp finds the others by the name of the first."""
    return str(min(model.glob("*.gguf")) if model.is_dir() else model)


def kept_free(fraction: float, default: list[int]) -> list[int]:
    """Bytes of each GPU that the fit leaves free, in llama.cpp's order of devices."""
    kinds = xllamacpp.ggml_backend_dev_type
    devices = xllamacpp.get_device_info()
    gpus = [one for one in devices if one["type"] == kinds.GGML_BACKEND_DEVICE_TYPE_GPU]
    gpus = gpus or [one for one in devices if one["type"] == kinds.GGML_BACKEND_DEVICE_TYPE_IGPU]
    margins = [int(one["memory_total"] * (1 - fraction)) for one in gpus]
    return [*margins, *default[len(margins) :]]


def http_threads(slots: int) -> int:
    """Each request holds one until it is answered: with few of them `/health` waits behind a burst.

    A container's limit of processes counts threads, too, and a limit of addresses their stacks.
    """
    wanted = slots + HTTP_THREADS
    addresses, stack = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_STACK))
    if addresses != resource.RLIM_INFINITY and stack != resource.RLIM_INFINITY:
        wanted = min(wanted, max(slots + 4, addresses // 4 // stack))
    for limit in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with contextlib.suppress(OSError, ValueError):  # not there, or `max`
            return min(wanted, max(slots + 4, int(Path(limit).read_text()) // 2))
    return wanted


def drain(metrics_url: str) -> None:
    """Wait until three looks in a row see no request, at most `DRAIN_S`."""
    deadline = time.monotonic() + DRAIN_S
    idle = 0
    while idle < 3 and time.monotonic() < deadline:
        idle = idle + 1 if in_flight(metrics_url) == 0 else 0
        time.sleep(POLL_S)


def in_flight(metrics_url: str) -> int:
    try:
        with urllib.request.urlopen(metrics_url, timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return 0
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return sum(
        int(float(values.get(f"llamacpp:{key}", 0))) for key in ("requests_processing", "requests_deferred")
    )


if __name__ == "__main__":
    sys.exit(main())
