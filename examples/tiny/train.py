"""Make the tiny Qwen3 model in `model/`: clean the text, split it, train, measure, write.

    python examples/tiny/train.py --text DIR_OR_GLOB

Four parts, in the order they run:

1. reStructuredText sources become prose, one paragraph a line, and whole documents are
   dealt to a training, a validation and a held-out split by a hash of their names.
2. A byte-level BPE tokenizer is trained on the training split alone.
3. An interpolated modified Kneser-Ney trigram model is counted on the training tokens. It is
   the yardstick: a network that does not beat it has learned only short-range statistics.
4. The network is trained in fp32 master weights, cast to bf16, and the cast weights are
   measured on the held-out tokens, because they are the ones that are published.

Perplexity here is always exp(mean negative log-likelihood in nats per token).
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
END_OF_TEXT = "<|endoftext|>"
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# ---------------------------------------------------------------------------------------
# 1. Text: reStructuredText to prose, and the split by whole documents
# ---------------------------------------------------------------------------------------

DEFINITIONS = frozenset(
    "function method class data attribute exception classmethod staticmethod decorator describe object "
    "coroutinefunction coroutinemethod abstractmethod awaitablefunction awaitablemethod envvar opcode "
    "cmdoption option pdbcommand 2to3fixer rubric centered c:function c:member c:type c:var c:macro "
    "c:struct c:enum c:enumerator".split()
)
ADMONITIONS = {"note": "Note:", "warning": "Warning:", "important": "Important:", "caution": "Caution:",
               "seealso": "See also:", "impl-detail": "CPython implementation detail:",
               "availability": "Availability:"}  # fmt: skip
VERSIONS = {"versionadded": "Added in version {}:", "versionchanged": "Changed in version {}:",
            "deprecated": "Deprecated since version {}:",
            "deprecated-removed": "Deprecated since version {}:"}  # fmt: skip
TRANSPARENT = frozenset("glossary topic sidebar only epigraph container".split())  # their bodies are prose

DIRECTIVE = re.compile(r"\.\. +([\w:+-]+?):: *(.*)$")
BULLET = re.compile(r"(?:[-*•]|#\.|\(?\d{1,2}[.)]|\(?[a-z]\)) +(?=\S)")
UNDERLINE = re.compile(r"([=\-~^\"*+#:.'`<>_])\1{2,}$")
SIMPLE_TABLE = re.compile(r"=+(?: +=+)+$")
FIELD = re.compile(r":[A-Za-z][\w *-]*:(?: |$)")
INLINE = re.compile(
    r":(?P<role>[\w:+-]+):`(?P<target>[^`]+)`"
    r"|``(?P<literal>.+?)``"
    r"|`(?P<link>[^`<]+?)(?: *<[^`>]*>)?`__?"
    r"|`(?P<plain>[^`]+)`"
    r"|(?<![\w*])\*\*(?P<strong>[^\s*](?:[^*]*[^\s*])?)\*\*(?!\w)"
    r"|(?<![\w*])\*(?P<emph>[^\s*](?:[^*]*[^\s*])?)\*(?![\w*])"
    r"|\|(?P<substitution>\w[^|\s]*)\|_?"
    r"| ?\[#?\w*\]_"
    r"|\\(?P<escaped>.)"
)
CREDIT = re.compile(
    r" *\((?:Contributed|Patch|Suggested|Implemented|Written|Reported)\b(?:[^()]|\([^()]*\))*\)"
)


def plain_inline(text: str) -> str:
    """Strip inline markup: roles, literals, links, emphasis, footnote marks and escapes."""

    def replace(match: re.Match[str]) -> str:
        role, target = match["role"], match["target"]
        if role is None:
            return next((part for part in match.groups() if part is not None), "").strip()
        shown = target.split(" <")[0].lstrip("!")
        if shown.startswith("~"):
            shown = shown.rsplit(".", 1)[-1].lstrip("~")
        if role in {"pep", "rfc"}:
            return f"{role.upper()} {shown}"
        calls = role.rsplit(":", 1)[-1] in {"func", "meth"} and not shown.endswith(")")
        return shown + "()" if calls and "<" not in target else shown

    return CREDIT.sub("", INLINE.sub(replace, text))


class RstCleaner:
    """One pass over a reStructuredText document that keeps its prose.

    Headings, paragraphs, list items, signatures and admonitions stay, each on one line. Code,
    tables, index entries, comments and footnotes go: a model this small spends its few
    parameters better on sentences.
    """

    def __init__(self) -> None:
        self.paragraphs: list[str] = []
        self.buffer: list[str] = []
        self.indent: int | None = None  # column of the open paragraph; None: its next line decides
        self.drop_beyond: int | None = None  # lines indented deeper than this belong to a dropped block
        self.drop_until_blank = False
        self.in_signature = False

    def flush(self) -> None:
        """Close the open paragraph; one that ends in `::` announces a code block to drop."""
        text = " ".join(self.buffer)
        if text.endswith("::"):
            text = text[:-2].rstrip() + ":" if text[:-2].strip() else ""
            self.drop_beyond = self.indent or 0
        text = plain_inline(text).strip()
        if text.startswith(("Added in version", "Deprecated since")) and text.endswith(":"):
            text = text[:-1] + "."
        if sum(char.isalpha() for char in text) * 2 > len(text):
            self.paragraphs.append(text)
        self.buffer, self.indent = [], None

    def directive(self, indent: int, name: str, argument: str) -> None:
        """Open what a `.. name:: argument` line starts, or mark its block as dropped."""
        self.flush()
        if name in DEFINITIONS:
            self.buffer = [argument]
            self.flush()
            self.in_signature = True
        elif name in VERSIONS:
            version, _, rest = argument.partition(" ")
            removal = ""
            if name == "deprecated-removed":
                removal, _, rest = rest.partition(" ")
                removal = f", to be removed in version {removal}"
            self.buffer = [VERSIONS[name].format(version + removal)] + ([rest] if rest else [])
        elif name in ADMONITIONS:
            self.buffer = [ADMONITIONS[name]] + ([argument] if argument else [])
        elif name not in TRANSPARENT:
            self.drop_beyond = indent

    def line(self, raw: str) -> None:
        """Take one source line."""
        text = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if not text:
            self.drop_until_blank = self.in_signature = False
            # A bare "Note:" waits for its body, which often follows a blank line.
            if self.indent is not None or len(self.buffer) > 1:
                self.flush()
            return
        if self.drop_until_blank:
            return
        if self.drop_beyond is not None:
            if indent > self.drop_beyond:
                return
            self.drop_beyond = None
        self.in_signature = self.in_signature and not text.startswith(".. ")
        if self.in_signature:
            if not text.startswith(":"):
                self.paragraphs.append(plain_inline(text))
            return
        self.content(text, indent)

    def content(self, text: str, indent: int) -> None:
        """Take a line that is neither blank nor inside a dropped block or a signature."""
        if found := DIRECTIVE.match(text):
            self.directive(indent, found[1], found[2])
        elif text == ".." or text.startswith((".. ", "__ ")):
            self.flush()
            self.drop_beyond = indent
        elif UNDERLINE.match(text) or FIELD.match(text):
            self.flush()
        elif text.startswith((">>>", "| ", "+-", "+=", "|")):
            self.flush()
            self.drop_until_blank = True
        elif found := BULLET.match(text):
            self.flush()
            self.buffer = ["- " + text[found.end() :]]
            self.indent = indent + found.end()
        else:
            if self.buffer and self.indent not in (None, indent):
                self.flush()
                if self.drop_beyond is not None and indent > self.drop_beyond:
                    return
            self.indent = indent
            self.buffer.append(text)


def without_tables(lines: list[str]) -> Iterator[str]:
    """Lines outside simple tables: a table runs to a border that a blank line follows."""
    inside = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        border = SIMPLE_TABLE.match(line.strip()) is not None
        if not inside and not border:
            yield line
        inside = (inside or border) and not (inside and border and not following.strip())


def clean_rst(source: str) -> str:
    """Prose of one document: paragraphs one a line, a blank line between them."""
    cleaner = RstCleaner()
    for line in without_tables(source.expandtabs().splitlines()):
        cleaner.line(line)
    cleaner.flush()
    return "\n\n".join(re.sub(r"\s+", " ", paragraph) for paragraph in cleaner.paragraphs)


def read_documents(pattern: str, min_chars: int = 600) -> dict[str, str]:
    """Name to prose of every source under a folder or matching a glob, in name order.

    Names are relative to the folder (for a glob: to its fixed part) and carry no suffix, so the
    split does not depend on where the sources lie. Licence texts are left out: they are not
    prose to imitate.
    """
    root = Path(pattern) if Path(pattern).is_dir() else Path(re.split(r"[*?\[]", pattern)[0]).parent
    found = root.rglob("*") if Path(pattern).is_dir() else map(Path, glob.glob(pattern, recursive=True))
    documents: dict[str, str] = {}
    for path in sorted(path for path in found if path.suffix in {".txt", ".rst"} and path.is_file()):
        name = path.relative_to(root).as_posix().removesuffix(".txt").removesuffix(".rst")
        if name in {"license", "copyright", "contents"}:
            continue
        text = clean_rst(path.read_text(encoding="utf-8", errors="replace"))
        if len(text) >= min_chars:
            documents[name] = text
    if not documents:
        raise SystemExit(f"no .rst or .txt document found under {pattern}")
    return documents


def split_of(name: str) -> str:
    """Split of a document, by a hash of its name: 1 in 25 held out, 1 in 50 for validation."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 50
    return {0: "heldout", 1: "heldout", 2: "validation"}.get(bucket, "train")


def make_splits(documents: dict[str, str]) -> dict[str, list[str]]:
    """Deal documents to splits; a long paragraph that is also held out leaves the other two."""
    named = {split: [name for name in documents if split_of(name) == split] for split in SPLITS}
    held = {line for name in named["heldout"] for line in documents[name].split("\n\n") if len(line) >= 60}
    splits = {"heldout": [documents[name] for name in named["heldout"]]}
    for split in ("train", "validation"):
        kept = ([p for p in documents[name].split("\n\n") if p not in held] for name in named[split])
        splits[split] = ["\n\n".join(paragraphs) for paragraphs in kept]
    return splits


SPLITS = ("train", "validation", "heldout")


def heldout_excerpt(documents: list[str], limit: int = 48_000, each: int = 8_000) -> str:
    """Beginnings of held-out documents, cut between paragraphs, about `limit` characters in all."""
    parts: list[str] = []
    for document in documents:
        part = document[:each]
        if len(part) == each:
            part = part[: part.rfind("\n\n")]
        if sum(map(len, parts)) + len(part) <= limit:
            parts.append(part)
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------
# 2. Tokenizer
# ---------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer; token 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # every byte can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Ints:
    """All documents as one stream of token ids, shape [tokens], each opened by the end-of-text token."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts):
        ids.append(0)
        ids.extend(encoding.ids)
    return np.array(ids, dtype=np.int64)


# ---------------------------------------------------------------------------------------
# 3. Yardstick: interpolated modified Kneser-Ney trigram (Chen and Goodman, 1999)
# ---------------------------------------------------------------------------------------


class KneserNeyLevel:
    """One order of the model: discounted counts and what is left for the order below.

    An n-gram is one integer in base `vocab`, its last token the lowest digit, so `code // vocab`
    is its context.
    """

    def __init__(self, codes: Ints, counts: Ints, vocab: int) -> None:
        self.codes, self.counts, self.vocab = codes, counts, vocab
        ones, twos, threes, fours = (max(1, int((counts == n).sum())) for n in (1, 2, 3, 4))
        y = ones / (ones + 2 * twos)
        steps = [0.0, 1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes]
        self.discounts = np.array(steps)[np.minimum(counts, 3)]
        self.contexts, owner = np.unique(codes // vocab, return_inverse=True)
        self.totals = np.bincount(owner, weights=counts)
        self.freed = np.bincount(owner, weights=self.discounts) / self.totals

    def probability(self, codes: Ints, lower: Floats) -> Floats:
        """P(last token | context) of each n-gram, given the lower order's; shapes [n]."""
        row = np.minimum(np.searchsorted(self.contexts, codes // self.vocab), len(self.contexts) - 1)
        known = self.contexts[row] == codes // self.vocab
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        seen = np.where(self.codes[at] == codes, self.counts[at] - self.discounts[at], 0.0)
        return np.where(known, seen / self.totals[row] + self.freed[row] * lower, lower)


class KneserNeyTrigram:
    """Trigram counts over a token stream; the lower orders count distinct left neighbours."""

    def __init__(self, tokens: Ints, vocab: int) -> None:
        self.vocab = vocab
        codes, counts = np.unique(self.encode(tokens), return_counts=True)
        self.levels: list[KneserNeyLevel] = []
        for order in (3, 2, 1):
            self.levels.insert(0, KneserNeyLevel(codes, counts, vocab))
            codes, counts = np.unique(codes % vocab ** (order - 1), return_counts=True)

    def encode(self, tokens: Ints) -> Ints:
        """Trigram code that ends at each token but the first; shape [tokens - 1]."""
        padded = np.concatenate([[0], tokens])
        codes: Ints = (padded[:-2] * self.vocab + padded[1:-1]) * self.vocab + padded[2:]
        return codes

    def perplexity(self, tokens: Ints) -> float:
        """Perplexity of every token but the first."""
        codes = self.encode(tokens)
        chance: Floats = np.full(len(codes), 1.0 / self.vocab)
        for order, level in enumerate(self.levels, start=1):
            chance = level.probability(codes % self.vocab**order, chance)
        return float(np.exp(-np.log(chance).mean()))


# ---------------------------------------------------------------------------------------
# 4. The network. Parameter names are Hugging Face's, so the state dict is the published file.
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes; hidden and feed-forward sizes are multiples of 256, the largest GGUF block."""

    vocab: int = 2048
    hidden: int = 256
    feed_forward: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 512
    rope_theta: float = 10_000.0
    eps: float = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as given; the norm itself is taken in fp32."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of x [batch, heads, time, head_dim], halves paired as in Qwen3."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with normed queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x and the result: [batch, time, hidden]."""
        batch, span, _ = x.shape
        split = (batch, span, -1, self.shape.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mixed = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, span, -1))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result: [batch, time, hidden]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added back."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = SwiGLU(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x and the result: [batch, time, hidden]."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Decoder(nn.Module):
    """Embedding, blocks and the last norm."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList([Block(shape, dropout) for _ in range(shape.layers)])
        self.norm = RMSNorm(shape.hidden, shape.eps)
        self.dropout = nn.Dropout(dropout)


class TinyQwen3(nn.Module):
    """Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Decoder(shape, dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Layers that write to the residual stream start smaller, so depth adds no variance.
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * shape.layers) if writes else 1))
        period = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(torch.arange(shape.context), shape.rope_theta**-period).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocab] of token ids [batch, time]."""
        span = tokens.shape[1]
        cos, sin = self.get_buffer("cos")[:span], self.get_buffer("sin")[:span]
        x = self.model.dropout(self.model.embed_tokens(tokens))
        for block in self.model.layers:
            x = block(x, cos, sin)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)


@torch.no_grad()
def model_perplexity(model: TinyQwen3, tokens: Ints, context: int) -> float:
    """Perplexity of every token but the first, in windows of `context` targets that share no context."""
    model.eval()
    stream = torch.from_numpy(tokens)
    loss = 0.0
    for start in range(0, len(stream) - 1, context):
        window = stream[start : start + context + 1]
        logits = model(window[None, :-1])[0].float()
        loss += functional.cross_entropy(logits, window[1:], reduction="sum").item()
    model.train()
    return math.exp(loss / (len(stream) - 1))


@dataclass(frozen=True)
class Plan:
    """One training run; `tokens_per_step` is shared out over windows of `context` tokens."""

    seed: int = 2026
    steps: int = 3600
    tokens_per_step: int = 4096
    context: int = 256
    final_share: float = 0.2  # the last part of the run sees the full context the model claims
    warmup: int = 150
    rate: float = 3e-3
    decay: float = 0.1
    dropout: float = 0.1


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def optimiser_for(model: TinyQwen3, plan: Plan) -> torch.optim.AdamW:
    """AdamW that decays matrices but not norms."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95), fused=True)


def train(shape: Shape, plan: Plan, tokens: Ints, validation: Ints) -> TinyQwen3:
    """Train on random windows of the stream; prints loss, validation perplexity and speed."""
    torch.manual_seed(plan.seed)
    draw = torch.Generator().manual_seed(plan.seed)
    model = TinyQwen3(shape, plan.dropout)
    optimiser = optimiser_for(model, plan)
    stream = torch.from_numpy(tokens)
    began = time.monotonic()
    for step in range(plan.steps):
        final = step >= plan.steps * (1 - plan.final_share)
        span = shape.context if final else plan.context
        starts = torch.randint(len(stream) - span, (plan.tokens_per_step // span,), generator=draw)
        windows = torch.stack([stream[start : start + span + 1] for start in starts.tolist()])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step)
        # bf16 products over fp32 master weights: about twice as fast on CPUs with AVX-512 BF16.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == plan.steps - 1:
            speed = (step + 1) * plan.tokens_per_step / (time.monotonic() - began)
            print(f"step {step} loss {loss.item():.3f} {speed:.0f} tokens/s", flush=True)
        if step % 500 == 499:
            perplexity = model_perplexity(model, validation, plan.context)
            print(f"step {step} validation {perplexity:.2f}", flush=True)
    return model


def cast_to_bf16(model: TinyQwen3) -> dict[str, Tensor]:
    """The published tensors; the model is left holding the same rounded values in fp32."""
    cast = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in cast.items()})
    return cast


# ---------------------------------------------------------------------------------------
# 5. Files
# ---------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, shape: Shape, tensors: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """A Hugging Face model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.layers,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
        "added_tokens_decoder": {"0": {"content": END_OF_TEXT, "special": True, **flags}},
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and measure the tiny Qwen3 model.")
    parser.add_argument("--text", required=True, metavar="DIR_OR_GLOB", help="reStructuredText sources")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write model/ and metrics.json to")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=Plan.dropout)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; sums round differently with it")
    return parser.parse_args()


def main() -> None:
    """Run the four parts and write model/, heldout.txt and metrics.json."""
    options = arguments()
    torch.set_num_threads(options.threads)
    shape = Shape()
    plan = Plan(seed=options.seed, steps=options.steps, rate=options.rate, dropout=options.dropout)
    splits = make_splits(read_documents(options.text))
    tokenizer = train_tokenizer(splits["train"], shape.vocab)
    streams = {split: token_stream(tokenizer, splits[split]) for split in SPLITS}
    excerpt = heldout_excerpt(splits["heldout"])
    excerpt_tokens = np.array(tokenizer.encode(excerpt).ids, dtype=np.int64)
    for split in SPLITS:
        print(f"{split}: {len(splits[split])} documents, {len(streams[split])} tokens")
    trigram = KneserNeyTrigram(streams["train"], shape.vocab)
    trigram_perplexity = trigram.perplexity(streams["heldout"])
    print(f"trigram: held-out perplexity {trigram_perplexity:.2f}", flush=True)

    began = time.monotonic()
    model = train(shape, plan, streams["train"], streams["validation"])
    seconds = time.monotonic() - began
    tensors = cast_to_bf16(model)
    perplexity = model_perplexity(model, streams["heldout"], shape.context)
    print(f"model: held-out perplexity {perplexity:.2f}; trigram: {trigram_perplexity:.2f}")

    write_model(options.out / "model", shape, tensors, tokenizer)
    (options.out / "heldout.txt").write_text(excerpt, encoding="utf-8")
    metrics = {
        "model_perplexity": round(perplexity, 3),
        "trigram_perplexity": round(trigram_perplexity, 3),
        "window_tokens": shape.context,
        "documents": {split: len(splits[split]) for split in SPLITS},
        "tokens": {split: len(streams[split]) for split in SPLITS},
        "heldout_txt": {
            "tokens": len(excerpt_tokens),
            "model_perplexity": round(model_perplexity(model, excerpt_tokens, shape.context), 3),
            "trigram_perplexity": round(trigram.perplexity(excerpt_tokens), 3),
        },
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "plan": asdict(plan),
        "seed": plan.seed,
        "steps": plan.steps,
        "tokens_seen": plan.steps * plan.tokens_per_step,
        "seconds": round(seconds, 1),
        "threads": options.threads,
        "torch": torch.__version__.split("+")[0],
    }
    write_json(options.out / "metrics.json", metrics)


if __name__ == "__main__":
    main()
