"""Write a model folder in another format, as a folder that engines load. Runs inside a quantizer's environment.

`python compress.py --model DIR --format w8a8 --out DIR [--calibration FILE --tokens N --window N]` prints one JSON
object: `{"size_bytes", "peak_bytes"}`; `{"refused", "fix"}` and exit status 2 for a model that cannot be written so;
`{"full"}` and exit status 3 for a disk without room. `bf16` and `f16` need torch and safetensors alone and hold one
tensor at a time; the others are llmcompressor's, which holds the model. Only w4a16 (GPTQ) looks at a text.
"""

import argparse
import contextlib
import errno
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

PLAIN = {"bf16": torch.bfloat16, "f16": torch.float16}
SCHEMES = {"w8a8": "W8A8", "w4a16": "W4A16", "fp8": "FP8_DYNAMIC"}
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MIN_WINDOWS = 4
OWN = ("config.json", "manifest.json")
"""Files that are written anew, or say of the source what is not so of the copy."""


class RefusedError(Exception):
    """The model cannot be written in this format; `fix` says what would help."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--format", choices=(*PLAIN, *SCHEMES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--window", type=int, default=512)
    arguments = parser.parse_args()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print there: standard output is the answer's
            write(arguments)
    except RefusedError as refusal:
        print(json.dumps({"refused": str(refusal), "fix": refusal.fix}))
        return 2
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        print(json.dumps({"full": str(arguments.out)}))
        return 3
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"size_bytes": size, "peak_bytes": peak}))
    return 0


def is_full(error: Exception) -> bool:
    """safetensors tells an error of the system in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def write(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True)
    if arguments.format in PLAIN:
        cast(arguments.model, PLAIN[arguments.format], arguments.out)
    else:
        compress(arguments)
    for path in arguments.model.rglob("*"):
        place = path.relative_to(arguments.model)
        weights = place.parent == Path() and path.name.endswith((".safetensors", ".safetensors.index.json"))
        if path.is_file() and not weights and str(place) not in OWN:
            (arguments.out / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, arguments.out / place)
    for path in filter(Path.is_file, arguments.out.rglob("*")):
        path.chmod(0o644)  # llmcompressor's weights are for their owner alone


def cast(model: Path, kind: torch.dtype, out: Path) -> None:
    """The same tensors in `kind`, in files of the same names. Refuses values beyond its range."""
    config = read_config(model)
    tied = bool(config.get("tie_word_embeddings", False))
    for path in sorted(model.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping, it has keys alone
                if tied and name == "lm_head.weight":
                    continue
                tensors[name] = as_kind(name, file.get_tensor(name), kind)
        save_file(tensors, out / path.name, metadata={"format": "pt"})
    index = model / "model.safetensors.index.json"
    if index.exists():
        files = json.loads(index.read_text())["weight_map"]
        if tied:
            files.pop("lm_head.weight", None)
        (out / index.name).write_text(json.dumps({"metadata": {}, "weight_map": files}, indent=1))
    name = str(kind).removeprefix("torch.")
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": name}, indent=1))


def as_kind(name: str, tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    if tensor.dtype not in FLOATS:
        raise RefusedError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}", "use a model that is not quantized"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise RefusedError(f"{name} contains values that are not numbers", "check the model at its source")
    found = tensor.to(kind)
    if not bool(torch.isfinite(found).all()):
        raise RefusedError(f"{name} contains values beyond the range of 16-bit floats", "use bf16")
    return found


def compress(arguments: argparse.Namespace) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    config = read_config(arguments.model)
    if config.get("quantization_config"):
        raise RefusedError("the model is quantized already", "use a model that is not quantized")
    kind = config.get("dtype") or config.get("torch_dtype")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float16 if kind == "float16" else torch.bfloat16
    )
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise RefusedError(
                f"{name} contains values that are not numbers", "check the model at its source"
            )
    asked = {"targets": "Linear", "scheme": SCHEMES[arguments.format], "ignore": ["lm_head"]}
    if arguments.format == "w4a16":
        windows = calibration(arguments)
        oneshot(
            model=model,
            recipe=GPTQModifier(**asked),
            dataset=windows,
            max_seq_length=arguments.window,
            num_calibration_samples=len(windows),
            shuffle_calibration_samples=False,
        )
    else:
        oneshot(model=model, recipe=QuantizationModifier(**asked))
    model.save_pretrained(arguments.out, save_compressed=True)


def calibration(arguments: argparse.Namespace) -> Any:
    """The text's tokens in windows. Refuses a text that is too short to calibrate on."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokens = tokenizer(arguments.calibration.read_text(), add_special_tokens=False)["input_ids"]
    tokens = tokens[: arguments.tokens]
    count = len(tokens) // arguments.window
    if count < MIN_WINDOWS:
        raise RefusedError(
            f"the calibration text has {len(tokens)} tokens; at least {MIN_WINDOWS * arguments.window} are needed",
            "give a longer tuning.calibration_text",
        )
    rows = [tokens[start * arguments.window : (start + 1) * arguments.window] for start in range(count)]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * arguments.window] * count})


def read_config(model: Path) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        raise RefusedError("config.json is missing or not JSON", "take the whole model folder") from None
    if not isinstance(config, dict):
        raise RefusedError("config.json is not a JSON object", "take the whole model folder")
    return config


if __name__ == "__main__":
    sys.exit(main())
