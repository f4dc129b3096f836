"""Write a Llama of random weights as a GGUF file: enough for llama.cpp to start, load and generate.

Runs inside the engine's environment: `python -I tiny_gguf.py OUT.gguf`. The file has 0.3 MB. Its
answers make no sense; that there are any proves that the wheel's native code loads and computes here.
"""

import sys

import gguf
import numpy as np

ARCHITECTURE = "llama"
HIDDEN, HEADS, FFN, LAYERS, CONTEXT = 64, 4, 128, 1, 512
END_OF_TEXT = "<|endoftext|>"


def main() -> int:
    tokens = [*byte_letters(), END_OF_TEXT]
    writer = gguf.GGUFWriter(sys.argv[1], ARCHITECTURE)
    add_shape(writer, len(tokens))
    add_vocabulary(writer, tokens)
    for name, tensor in tensors(len(tokens), np.random.default_rng(0)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def add_shape(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    writer.add_token_types(kinds)
    # The loader requires merges; one of two letters that do not form a token has no effect.
    writer.add_token_merges(["Ā ā"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(True)


def tensors(vocabulary: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.1).astype(np.float32)

    output = matrix(vocabulary, HIDDEN)
    output[-1] = 0  # the end of text is never chosen, so every prompt gets an answer
    found = {
        "token_embd.weight": matrix(vocabulary, HIDDEN),
        "output_norm.weight": np.ones(HIDDEN, np.float32),
        "output.weight": output,
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        found |= {block + name + "_norm.weight": np.ones(HIDDEN, np.float32) for name in ("attn", "ffn")}
        found |= {block + f"attn_{name}.weight": matrix(HIDDEN, HIDDEN) for name in "qkv"}
        found[block + "attn_output.weight"] = matrix(HIDDEN, HIDDEN)
        found[block + "ffn_gate.weight"] = matrix(FFN, HIDDEN)
        found[block + "ffn_up.weight"] = matrix(FFN, HIDDEN)
        found[block + "ffn_down.weight"] = matrix(HIDDEN, FFN)
    return found


if __name__ == "__main__":
    sys.exit(main())
