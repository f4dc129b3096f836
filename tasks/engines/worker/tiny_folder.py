"""Write a tiny random Llama as a model folder, with a tokenizer of bytes: `tiny_folder.py FOLDER`.

Runs inside the environment, with the library that is to serve it.
"""

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed


def main() -> None:
    folder = sys.argv[1]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<end>": 0} | {letter: number for number, letter in enumerate(alphabet, start=1)}
    bytewise = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    set_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
