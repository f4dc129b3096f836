"""Score a text under a model folder, and answer task items, by Transformers. Runs inside the engine's environment.

`python score_text.py --asked FILE --out FILE`, where the first holds `{"model", "device", "threads",
"trust_remote_code", "text", "tokens", "window", "likeliest", "prompts": [{"prompt", "expected"} or
{"prompt", "choices"}]}`, writes JSON lines:
for each window of the text `{"ids", "logprobs", "top_ids", "top_logprobs"}` of all its tokens but the first, then for
each task item `{"length"}` in tokens, with `{"text"}`, what greedy decoding gives, or `{"logprobs"}`, one for each
choice; `{"length"}` alone if that is longer than a window. What a model puts before every text is put before each.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOM = 4
"""Tokens generated beyond those of the expected text: the model may cut words otherwise."""
ROWS = 128
"""Positions whose probabilities are held at once, in 32 bits, over the whole vocabulary."""


class Scorer:
    """A loaded model with its tokenizer."""

    def __init__(self, path: str, device: str, *, trust: bool) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", device_map=device, trust_remote_code=trust
        )
        self.model.eval()
        self.prefix = self._prefix()

    def _prefix(self) -> list[int]:
        plain, special = self.tokens("a"), self.tokenizer("a")["input_ids"]
        return special[: len(special) - len(plain)] if special[-len(plain) :] == plain else []

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def logprobs(self, ids: list[int], start: int) -> Iterator[torch.Tensor]:
        """Log-probabilities of all tokens at each position from `start` on, up to `ROWS` positions at a time."""
        logits = self.model(torch.tensor([ids], device=self.model.device), use_cache=False).logits[0]
        for row in range(start - 1, len(ids) - 1, ROWS):
            yield torch.log_softmax(logits[row : min(row + ROWS, len(ids) - 1)].float(), dim=-1)

    def window(self, ids: list[int], likeliest: int) -> dict[str, Any]:
        """Scores of a window's tokens but the first; what comes before every text is context."""
        whole, start = [*self.prefix, *ids], len(self.prefix) + 1
        found: dict[str, Any] = {"ids": whole[start:], "logprobs": [], "top_ids": [], "top_logprobs": []}
        for part in self.logprobs(whole, start):
            done = len(found["logprobs"])
            forced = torch.tensor(whole[start + done : start + done + len(part)], device=part.device)
            values, ids_of = part.topk(min(likeliest, part.shape[-1]))
            found["logprobs"] += part.gather(1, forced[:, None])[:, 0].tolist()
            found["top_ids"] += ids_of.tolist()
            found["top_logprobs"] += values.tolist()
        return found

    def choice(self, prompt: list[int], whole: list[int]) -> float:
        """Log-probability of what `whole` adds to `prompt`: its last token may merge with what follows."""
        pairs = enumerate(zip(prompt, whole, strict=False))
        shared = next((at for at, (one, other) in pairs if one != other), min(len(prompt), len(whole)))
        start, total = max(1, shared), 0.0
        for part in self.logprobs(whole, start):
            forced = torch.tensor(whole[start : start + len(part)], device=part.device)
            total += float(part.gather(1, forced[:, None]).sum())
            start += len(part)
        return total

    def item(self, asked: dict[str, Any], window: int) -> dict[str, Any]:
        prompt = [*self.prefix, *self.tokens(asked["prompt"])]
        if asked.get("expected") is not None:
            wanted = len(self.tokens(asked["expected"])) + ROOM
            if len(prompt) + wanted > window:
                return {"length": len(prompt) + wanted}
            text = self._generate(prompt, wanted)
            return {"length": len(prompt) + wanted, "text": text}
        wholes = [[*self.prefix, *self.tokens(asked["prompt"] + choice)] for choice in asked["choices"]]
        longest = max(len(whole) for whole in wholes)
        if longest > window:
            return {"length": longest}
        return {"length": longest, "logprobs": [self.choice(prompt, whole) for whole in wholes]}

    def _generate(self, prompt: list[int], tokens: int) -> str:
        ids = torch.tensor([prompt], device=self.model.device)
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        text: str = self.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
        return text


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--asked", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    asked = json.loads(arguments.asked.read_text())
    torch.set_num_threads(asked["threads"])
    with torch.inference_mode(), arguments.out.open("w") as file:
        answer(asked, file)
    return 0


def answer(asked: dict[str, Any], file: IO[str]) -> None:
    scorer = Scorer(asked["model"], asked["device"], trust=asked["trust_remote_code"])
    if asked["text"] is not None:
        tokens = scorer.tokens(asked["text"])[: asked["tokens"]]
        for start in range(0, len(tokens), asked["window"]):
            ids = tokens[start : start + asked["window"]]
            print(json.dumps(scorer.window(ids, asked["likeliest"])), file=file)
    for one in asked["prompts"]:
        print(json.dumps(scorer.item(one, asked["window"])), file=file)


if __name__ == "__main__":
    sys.exit(main())
