"""A small Llama model with random weights as one GGUF file. Runs with the engine environment's Python.

`python random_gguf.py FILE [SEED]`
"""

import sys

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, CONTEXT = 64, 4, 2, 128, 2, 2048


def main() -> None:
    path, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    vocabulary = add_vocabulary(writer)
    for name, shape in tensor_shapes(vocabulary).items():
        writer.add_tensor(name, values(shape, np.random.default_rng([seed, len(name)])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """One token per byte, in the letters that GPT-2 gives to bytes, and an end of text; how many."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)] + ["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(False)
    return len(tokens)


def tensor_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (vocabulary, HIDDEN),
    }
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        shapes |= {
            prefix + "attn_norm.weight": (HIDDEN,),
            prefix + "ffn_norm.weight": (HIDDEN,),
            prefix + "attn_q.weight": (HIDDEN, HIDDEN),
            prefix + "attn_k.weight": (kv, HIDDEN),
            prefix + "attn_v.weight": (kv, HIDDEN),
            prefix + "attn_output.weight": (HIDDEN, HIDDEN),
            prefix + "ffn_gate.weight": (FFN, HIDDEN),
            prefix + "ffn_up.weight": (FFN, HIDDEN),
            prefix + "ffn_down.weight": (HIDDEN, FFN),
        }
    return shapes


def values(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return (random.standard_normal(shape) * 0.08).astype(np.float32)


if __name__ == "__main__":
    main()
