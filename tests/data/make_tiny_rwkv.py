"""Makes `tests/data/tiny-rwkv`: a Hugging Face folder of a tiny RWKV with random weights and a tokenizer of its own.

    python tests/data/make_tiny_rwkv.py

The tokenizer is byte-level BPE of 512 tokens, trained on the packaged excerpt of Python source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import RwkvConfig, RwkvForCausalLM

from edgemem import checkpoints

FOLDER = Path(__file__).parent / "tiny-rwkv"
VOCAB, END = 512, "<end>"


def tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE; `<end>` is token 0 and begins a text too."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return made


def model() -> RwkvForCausalLM:
    """Two layers of width 48, of seed 0."""
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=VOCAB, hidden_size=48, attention_hidden_size=64, num_hidden_layers=2, intermediate_size=96,
        context_length=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return RwkvForCausalLM(config)


def main() -> None:
    with np.load(checkpoints.packaged("bytes_excerpt.npz")) as arrays:
        text = arrays["pieces"].tobytes().decode("utf-8", "ignore")
    model().save_pretrained(FOLDER, safe_serialization=True)
    tokenizer(text).save(str(FOLDER / "tokenizer.json"))


if __name__ == "__main__":
    main()
