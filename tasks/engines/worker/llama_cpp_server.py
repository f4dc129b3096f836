"""Serve a GGUF file, or a folder with its parts, with llama.cpp's own server. Runs inside the engine's environment.

Ends with 0 after SIGTERM once no request is in flight, with 1 when it cannot start.
llama.cpp cuts requests on SIGTERM, so this process drains first: it must be out of the traffic before.

The library reads no command line, so `OPTIONS` says which of its parameters each of llama.cpp's own options sets.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import xllamacpp

DRAIN_S = 30.0
POLL_S = 0.05
HTTP_THREADS = 256
SAYS_WHAT_IT_FITTED = 4
"""llama.cpp's verbosity at which its log tells of the fit and of the layers on GPUs; 3 is its own."""


class Option(NamedTuple):
    """An option of llama.cpp's server: the parameter that it sets, and how its value is read. Without `read` it is a
    flag, which sets `value`, or what that returns."""

    field: str
    read: Callable[[str], Any] | None = None
    value: Any = True


def one_of(enum: str, prefix: str, names: str) -> Callable[[str], Any]:
    """A member of an enumeration: `names` are llama.cpp's own, where they differ with the member's after `=`."""
    known = {word.partition("=")[0]: word.rpartition("=")[2] for word in names.split()}

    def read(text: str) -> Any:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
        return getattr(getattr(xllamacpp, enum), f"{prefix}{known[text].upper()}")

    return read


def shares(text: str) -> list[float]:
    """Numbers with commas between them, one for each GPU, for all the places that the library has."""
    given = [float(part) for part in text.split(",")]
    places = len(xllamacpp.CommonParams().tensor_split)
    if len(given) > places:
        raise argparse.ArgumentTypeError(f"at most {places} numbers")
    return [*given, *[0.0] * (places - len(given))]


KV_TYPE = one_of("ggml_type", "GGML_TYPE_", "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1")
ATTENTION = one_of("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", "on=enabled off=disabled auto")
NUMA = one_of("ggml_numa_strategy", "GGML_NUMA_STRATEGY_", "distribute isolate numactl")
ROPE = one_of("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", "none linear yarn")
REASONING = one_of(
    "common_reasoning_format",
    "COMMON_REASONING_FORMAT_",
    "none auto deepseek deepseek-legacy=deepseek_legacy",
)
SPLIT = one_of("llama_split_mode", "LLAMA_SPLIT_MODE_", "none layer row tensor")
OPTIONS = {
    "cache-idle-slots": Option("cache_idle_slots"),
    "cache-ram": Option("cache_ram_mib", int),
    "cache-reuse": Option("n_cache_reuse", int),
    "cache-type-k": Option("cache_type_k", KV_TYPE),
    "cache-type-v": Option("cache_type_v", KV_TYPE),
    "check-tensors": Option("check_tensors"),
    "context-shift": Option("ctx_shift"),
    "ctx-checkpoints": Option("n_ctx_checkpoints", int),
    "flash-attn": Option("flash_attn_type", ATTENTION),
    "frequency-penalty": Option("sampling.penalty_freq", float),
    "keep": Option("n_keep", int),
    "kv-unified": Option("kv_unified"),
    "log-verbosity": Option("verbosity", int),
    "main-gpu": Option("main_gpu", int),
    "min-p": Option("sampling.min_p", float),
    "mlock": Option("load_mode", value=lambda: xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK),
    "no-cache-prompt": Option("cache_prompt", value=False),
    "no-host": Option("no_host"),
    "no-kv-offload": Option("no_kv_offload"),
    "no-mmap": Option("load_mode", value=lambda: xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE),
    "no-op-offload": Option("no_op_offload"),
    "no-repack": Option("no_extra_bufts"),
    "no-slots": Option("endpoint_slots", value=False),
    "no-warmup": Option("warmup", value=False),
    "numa": Option("numa", NUMA),
    "override-tensor": Option("tensor_buft_overrides", str),
    "poll": Option("cpuparams.poll", int),
    "predict": Option("n_predict", int),
    "presence-penalty": Option("sampling.penalty_present", float),
    "props": Option("endpoint_props"),
    "repeat-last-n": Option("sampling.penalty_last_n", int),
    "repeat-penalty": Option("sampling.penalty_repeat", float),
    "rope-freq-base": Option("rope_freq_base", float),
    "rope-freq-scale": Option("rope_freq_scale", float),
    "rope-scaling": Option("rope_scaling_type", ROPE),
    "samplers": Option("sampling.samplers", str),
    "seed": Option("sampling.seed", int),
    "slot-prompt-similarity": Option("slot_prompt_similarity", float),
    "special": Option("special"),
    "split-mode": Option("split_mode", SPLIT),
    "swa-full": Option("swa_full"),
    "temp": Option("sampling.temp", float),
    "tensor-split": Option("tensor_split", shares),
    "threads-batch": Option("cpuparams_batch.n_threads", int),
    "top-k": Option("sampling.top_k", int),
    "top-p": Option("sampling.top_p", float),
    "typical": Option("sampling.typ_p", float),
    "yarn-attn-factor": Option("yarn_attn_factor", float),
    "yarn-beta-fast": Option("yarn_beta_fast", float),
    "yarn-beta-slow": Option("yarn_beta_slow", float),
    "yarn-ext-factor": Option("yarn_ext_factor", float),
    "yarn-orig-ctx": Option("yarn_orig_ctx", int),
}
OTHER_WAYS_TO_LOAD = ("mlock", "no-mmap")
"""They set one parameter, so only one of them can be given."""


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
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True, action="append", help="each of the model's names")
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
    parser.add_argument("--task", choices=["embed", "rerank"], help="other than to generate text")
    parser.add_argument("--pooling", choices=["mean", "cls", "last"], help="how an embedding is made")
    parser.add_argument("--chat-template", type=Path, help="file that replaces the model's own")
    parser.add_argument("--reasoning-format", type=REASONING, help="where an answer has its reasoning")
    known = known_options()
    # Without members, a group breaks the help.
    loading = parser.add_mutually_exclusive_group() if "mlock" in known else parser
    for name, option in known.items():
        place = loading if name in OTHER_WAYS_TO_LOAD else parser
        if option.read is None:
            place.add_argument(f"--{name}", dest=name, action="store_const", const=option.value)
        else:
            place.add_argument(f"--{name}", dest=name, type=option.read, metavar="VALUE")
    return parser.parse_args()


def set_options(params: "xllamacpp.CommonParams", arguments: argparse.Namespace) -> None:
    """Set the parameters of the options that were given."""
    for name, option in known_options().items():
        value = getattr(arguments, name)
        if value is not None:
            place, field = place_of(params, option)
            setattr(place, field, value() if callable(value) else value)


def known_options() -> dict[str, Option]:
    """The options whose parameters this release of the library has."""
    params = xllamacpp.CommonParams()
    return {name: option for name, option in OPTIONS.items() if hasattr(*place_of(params, option))}


def place_of(params: "xllamacpp.CommonParams", option: Option) -> tuple[Any, str]:
    """The object that has the option's parameter, and its name there."""
    *parents, field = option.field.split(".")
    place: Any = params
    for parent in parents:
        place = getattr(place, parent)
    return place, field


def parameters(arguments: argparse.Namespace) -> "xllamacpp.CommonParams":
    params = xllamacpp.CommonParams()
    params.model.path = first_part(Path(arguments.model))
    params.model_alias = set(arguments.alias)
    if hasattr(params, "hostnames"):
        params.hostnames = [arguments.host]
    else:  # releases before 2026.10
        params.hostname = arguments.host
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
    if arguments.chat_template:
        params.chat_template = arguments.chat_template.read_text()
    if arguments.task:
        set_task(params, arguments)
    if arguments.reasoning_format is not None:
        params.reasoning_format = arguments.reasoning_format
    params.ui = False
    params.warmup = True
    set_options(params, arguments)
    if params.fit_params:
        params.fit_params_target = kept_free(arguments.memory_fraction, params.fit_params_target)
        params.verbosity = max(params.verbosity, SAYS_WHAT_IT_FITTED)
    return params


def set_task(params: "xllamacpp.CommonParams", arguments: argparse.Namespace) -> None:
    """Have embeddings or scores computed. An encoder looks at a whole text at once, so a step must hold one."""
    params.embedding = True
    kind = "rank" if arguments.task == "rerank" else arguments.pooling
    if kind:
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{kind.upper()}")
    step = max(params.n_ubatch, arguments.context // arguments.slots)
    params.n_batch = params.n_ubatch = step


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
