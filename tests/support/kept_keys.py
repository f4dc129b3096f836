"""Run by an engine's Python: what Transformers keeps of a context, for tiny models with random weights.

    PYTHON kept_keys.py CONFIGURATIONS.json TOKENS

prints for each configuration `{"config": as it is saved, "kept": {tokens: bytes of each}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]
from transformers import CONFIG_MAPPING, AutoModelForCausalLM  # type: ignore[import-not-found]
from transformers.utils import logging  # type: ignore[import-not-found]

logging.set_verbosity_error()
torch.manual_seed(0)
for given in json.loads(Path(sys.argv[1]).read_text()):
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[given["model_type"]](**given), dtype=torch.bfloat16
    )
    with torch.no_grad():
        cache = model(torch.arange(int(sys.argv[2]))[None], use_cache=True).past_key_values
    kept: dict[int, int] = {}
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or not keys.numel():
            continue  # recurrent, or it reads the cache of another layer
        tokens = keys.shape[-2]
        kept[tokens] = kept.get(tokens, 0) + (keys.nbytes + values.nbytes) // tokens
    print(json.dumps({"config": json.loads(model.config.to_json_string()), "kept": kept}))
