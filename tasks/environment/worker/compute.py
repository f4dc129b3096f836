"""Run small computations with installed modules: an import alone loads code without running it. One JSON line each.

Runs inside the environment, standard library only at the start: `python -I compute.py gpu|cpu MODULE …`. Unknown
modules are skipped. With `gpu`, a framework that was built for CUDA has to find a device.
"""

import importlib
import json
import os
import sys
import time


def main() -> int:
    # What modules print meanwhile goes to standard error; standard output is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    has_gpu = sys.argv[1] == "gpu"
    modules = [name for name in sys.argv[2:] if name in TRIALS]
    for name in modules:
        for what, trial in TRIALS[name]:
            print(json.dumps({"what": what}), file=answers, flush=True)  # it may kill the interpreter
            start = time.monotonic()
            ok, reason, note = run(trial, importlib.import_module(name), has_gpu, modules)
            seconds = time.monotonic() - start
            answer = {"what": what, "ok": ok, "seconds": seconds, "reason": reason, "note": note}
            print(json.dumps({} if note == PASSED_OVER else answer), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # some native libraries crash when the interpreter exits


PASSED_OVER = "passed over"


def run(trial, module, has_gpu, modules):
    try:
        return True, None, trial(module, has_gpu, modules)
    except BaseException as error:  # noqa: BLE001 - whatever foreign code raises is the answer
        return False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", None


def numpy_multiplies(numpy, _has_gpu, _modules):
    assert (numpy.ones((4, 3)) @ numpy.ones((3, 2))).sum() == 24


def torch_multiplies(torch, _has_gpu, _modules):
    assert float((torch.ones(4, 3) @ torch.ones(3, 2)).sum()) == 24
    return f"torch {torch.__version__}"


def torch_meets_numpy(torch, _has_gpu, modules):
    """They share memory through a C interface: a torch built for another numpy can be imported, but fails here."""
    if "numpy" not in modules:
        return PASSED_OVER
    numpy = importlib.import_module("numpy")
    assert torch.from_numpy(numpy.arange(3.0)).numpy().sum() == 3


def torch_finds_the_gpu(torch, has_gpu, _modules):
    """A driver that is too old for the build, or kernels for other GPUs, only show when the first kernel runs."""
    if not has_gpu or torch.version.cuda is None:
        return PASSED_OVER
    torch.cuda.init()
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        assert float((torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum()) == 64**3
    assert torch.cuda.device_count(), "no CUDA device was found"
    return f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices"


def torchvision_knows_its_operators(torchvision, _has_gpu, _modules):
    torch = importlib.import_module("torch")
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert len(torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5)) == 1


def safetensors_round_trip(_safetensors, _has_gpu, modules):
    if "numpy" not in modules:
        return PASSED_OVER
    numpy = importlib.import_module("numpy")
    interface = importlib.import_module("safetensors.numpy")
    assert interface.load(interface.save({"a": numpy.arange(3.0)}))["a"].sum() == 3


TRIALS = {
    "numpy": [("multiplying matrices with numpy", numpy_multiplies)],
    "safetensors": [("writing and reading safetensors", safetensors_round_trip)],
    "torch": [
        ("multiplying matrices with torch", torch_multiplies),
        ("passing arrays from numpy to torch", torch_meets_numpy),
        ("computing on the GPU with torch", torch_finds_the_gpu),
    ],
    "torchvision": [("running torchvision's operators", torchvision_knows_its_operators)],
}


if __name__ == "__main__":
    sys.exit(main())
