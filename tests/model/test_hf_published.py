"""Weights as they are published, under names and with entries that the library has left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from localrank_cli import analyze
from tests.families.truth import Naive, load

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install transformers"
)
pytestmark = pytest.mark.filterwarnings("ignore")

State = dict[str, Tensor]
SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16,
}  # fmt: skip


def with_masks_and_tables(state: State) -> State:
    """Return Pythia's entries: a mask in integers, its fill value and a rotary table."""
    for index in range(2):
        place = f"gpt_neox.layers.{index}.attention."
        state[f"{place}bias"] = torch.ones(1, 1, 16, 16).tril().to(torch.uint8)
        state[f"{place}masked_bias"] = torch.tensor(-1e9)
        state[f"{place}rotary_emb.inv_freq"] = torch.rand(4)
    return state


def of_the_base_model(state: State) -> State:
    """Return GPT-2's entries: without the prefix and the head, and with masks."""
    bare = {key.removeprefix("transformer."): value for key, value in state.items()}
    del bare["lm_head.weight"]
    return bare | {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}


def with_gamma_and_beta(state: State) -> State:
    """Return BERT's entries: norms of TensorFlow's names, and no decoder, which is tied."""
    renamed = {}
    for key, value in state.items():
        if "predictions.decoder" not in key:
            old = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            renamed[old.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    assert len([key for key in renamed if key.endswith(("gamma", "beta"))]) > 4
    return renamed


PUBLISHED: dict[str, tuple[str, str, dict[str, Any], Callable[[State], State], str, str]] = {
    "pythia": (
        "GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL, with_masks_and_tables,
        "gpt_neox.embed_in", "gpt_neox.layers.1.mlp.dense_4h_to_h",
    ),
    "gpt2": (
        "GPT2Config", "GPT2LMHeadModel",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16,
         "bos_token_id": 0, "eos_token_id": 1},
        of_the_base_model, "transformer.wte", "transformer.h.1.mlp.c_proj",
    ),
    "bert": (
        "BertConfig", "BertForMaskedLM", SMALL, with_gamma_and_beta,
        "bert.embeddings.word_embeddings", "cls.predictions.transform.dense",
    ),
}  # fmt: skip


@pytest.mark.cover(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config_name, model_name, sizes, change, wrt, layer = PUBLISHED[name]
    config = getattr(transformers, config_name)(**sizes)
    model_class = getattr(transformers, model_name)
    tokens = torch.randint(2, 50, (2, 4))
    for step in (0, 1000):
        torch.manual_seed(step + 1)
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        described = config.to_dict() | {"architectures": [model_name]}
        (folder / "config.json").write_text(json.dumps(described, default=str))
        drawn = {
            key: (value + 0.1 * torch.randn_like(value)).to(dtype)
            for key, value in model_class(config).state_dict().items()
        }
        state = {key: value.contiguous().clone() for key, value in change(drawn).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    frame = analyze(tmp_path, model="hf", data=tokens, wrt=wrt, layers=layer, rtol=0.02)
    assert set(frame["method"]) == {"exact"}
    for _, row in frame.iterrows():
        naive = Naive(load(model_class, tmp_path / row["checkpoint"]), "input_ids", wrt)
        spectra = [naive.singular_values(one[None], layer) for one in tokens]
        sigma = sum(one[0].item() for one in spectra) / 2
        # Both are float64, in another order of summation: about 1e-13.
        assert row["spectral_norm"] == pytest.approx(sigma, rel=1e-9)
        assert row["local_rank"] == sum(int((one > 0.02 * one[0]).sum()) for one in spectra) / 2
