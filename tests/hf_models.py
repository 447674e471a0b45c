"""Small Hugging Face models with random weights, one of every architecture that streams, and what each must pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'edgemem[export,hf]'")

from edgemem.export.hf import loading, registry
from edgemem.export.hf.folder import TASK
from edgemem.export.hf.stream import CausalStream
from edgemem.models import configuration
from edgemem.module import declared_states, scan, start_state

TOKENS, WARM = 240, 40
CLOSE = 2e-5  # of the largest logit: float32 sums in another order, over 240 tokens
VOCAB = 61

DECODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 20},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 6, "time_step_rank": 3},
    "mamba2": {
        "hidden_size": 16, "num_hidden_layers": 2, "state_size": 6, "head_dim": 8, "num_heads": 4, "n_groups": 2,
        "chunk_size": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    },
    "llama": {**DECODER, "num_key_value_heads": 2},
    "mistral": {**DECODER, "num_key_value_heads": 1, "sliding_window": None, "head_dim": 6},
    "qwen2": {**DECODER, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**DECODER, "num_key_value_heads": 2, "head_dim": 6},
    "lfm2": {**DECODER, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "qwen3_next": {
        **DECODER, "num_key_value_heads": 2, "head_dim": 8, "partial_rotary_factor": 0.5,
        "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 6, "linear_value_head_dim": 5,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12, "mlp_only_layers": [1],
    },
    "recurrent_gemma": {
        **DECODER, "num_key_value_heads": 1, "num_hidden_layers": 2, "lru_width": 16, "attention_window_size": 250,
        "block_types": ["recurrent", "attention"],
    },
    "xlstm": {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "bos_token_id": 0, "eos_token_id": 0},
}  # fmt: skip


def fields(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a small model."""
    return {"model_type": name.partition(":")[0], "vocab_size": VOCAB, **CONFIGS[name], **changes}


def stream_of(name: str, **settings: object) -> CausalStream:
    """A small model as a streaming module; its weights are spread wide enough for every part to matter."""
    config = loading.configuration(fields(name), name)
    with loading.quiet():
        model = spread(loading.random_model(config, TASK, seed=1).eval())
    exporter = registry.config_of(config)
    return exporter.stream(model, configuration(name, exporter.STREAM.settings_type, settings)).eval()


def spread(model: Any) -> Any:
    """Weights of which every one matters: matrices at the scale of their inputs, biases and norms not all equal.

    Gates that start closed are opened.
    """
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if weight.dim() == 2 and weight.std() < 0.1:
                weight.copy_(noise * weight.shape[1] ** -0.5)
            elif weight.dim() == 1 and weight.std(correction=0) == 0:
                weight.copy_(weight.clamp(min=-3.0) + 0.2 * noise)
    return model


def tokens(time: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (2, time), generator=torch.Generator().manual_seed(seed))


def close(came: Tensor, wanted: Tensor) -> None:
    """Equal but for rounding; `wanted` must be something to differ from."""
    scale = float(wanted.abs().max())
    assert scale > 0.1 and float(wanted.std()) > 0.01 * scale
    assert float((came - wanted).abs().max()) <= CLOSE * scale


def check_step_equals_forward(stream: CausalStream) -> None:
    """Token by token as all at once, by transformers' own forward."""
    x = tokens(TOKENS)
    with torch.no_grad():
        stepped, _ = scan(stream, x, sizes=[1])
        close(stepped, stream(x))


def check_cache_goes_on(stream: CausalStream, cache: Any) -> None:
    """The model's own cache of the first tokens is the state of a stream that has seen them, and goes on."""
    x = tokens(WARM + 20)
    with torch.no_grad():
        _, state = scan(stream, x[:, :WARM], sizes=[1])
        known = stream.remembered(cache)
        assert set(known) == set(state)
        for name, value in known.items():
            assert value.shape == state[name].shape, name
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)
        rest, _ = scan(stream, x[:, WARM:], known, sizes=[1])
        close(rest, stream(x)[:, WARM:])


def check_every_state_matters(stream: CausalStream) -> None:
    """A change of any one state shows in the logits of the next tokens."""
    x = tokens(6, seed=3)
    with torch.no_grad():
        _, warm = scan(stream, tokens(WARM), sizes=[1])
        wanted, _ = scan(stream, x, warm, sizes=[1])
        assert set(warm) == set(declared_states(stream)) == set(start_state(stream))
        for name, value in warm.items():
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(4))
            # the sum that normalises a matrix memory counts only where it is large
            changed = value + (3 if name in ("seen", "place") else 50 * noise if name.endswith(".norm") else noise)
            came, _ = scan(stream, x, {**warm, name: changed}, sizes=[1])
            assert float((came - wanted).abs().max()) > 1e-4, name


def saved(name: str, folder: Path, **changes: Any) -> Path:
    """A folder with config.json and model.safetensors of a small model; `changes` go into the config.json."""
    stream_of(name).model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
