"""`localrank compress --model hf`: a folder that `from_pretrained` loads."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.cli.program import Outcome, invoke, rows

pytestmark = pytest.mark.filterwarnings("ignore")
N_POINTS = 64


def saved(transformers: Any, kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    else:  # no layer has a bias
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=8, **sizes,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # drawn with so little spread that nothing would matter
                parameter.mul_(10)
    model.save_pretrained(folder / "checkpoint-30")
    tokens = torch.randint(20, (N_POINTS, 8), generator=torch.Generator().manual_seed(1))
    np.savez(folder / "data.npz", x=tokens.numpy())
    return model.eval()


def compress(*words: str) -> Outcome:
    data = ("--data", "data.npz", "--data-key", "x", "--device", "cpu", "--model", "hf")
    return invoke("compress", "checkpoint-30", *data, "-o", "out", *words)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.families)])
def test_from_pretrained_loads_what_is_reported(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    original = saved(transformers, kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = compress("--budget", "0.5")
    assert outcome.code == 0, outcome.stderr
    assert "out/hf_0.5: from_pretrained loads it" in outcome.stdout
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        "out/hf_0.5", output_loading_info=True
    )
    assert type(model) is type(original)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with np.load("data.npz") as file:
        tokens = torch.from_numpy(file["x"])
    order = torch.randperm(N_POINTS, generator=torch.Generator().manual_seed(0))
    chosen = tokens[order[3 * N_POINTS // 4 :]]  # the reporting split
    load = runpy.run_path("out/load.py")["load"]
    factored = load(original, "out/factored_0.5.safetensors")
    row = next(one for one in rows(tmp_path / "out" / "budgets.csv") if one["budget"] == "0.5")
    for found in (model.eval(), factored):
        with torch.no_grad():
            logits = found(input_ids=chosen).logits[:, :-1].flatten(0, 1)
        loss = float(functional.cross_entropy(logits.double(), chosen[:, 1:].flatten()))
        # Float32, in another order of products.
        assert loss == pytest.approx(float(row["loss"]), rel=1e-4)
    ranks = {one["layer"]: one["rank"] for one in rows(tmp_path / "out" / "layers.csv")}
    assert any(ranks.values())
    for name, rank in ranks.items():
        weight = model.get_submodule(name).weight.detach().double()
        # A float32 product of factors has values below 1e-6 of the largest beyond its rank.
        if rank:
            assert int(torch.linalg.matrix_rank(weight, rtol=1e-5)) <= int(rank)


def test_the_factored_file_is_analyzed_beside_the_config(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(transformers, "gpt2", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert compress("--budget", "0.4").code == 0
    words = [
        *("--data", "data.npz", "--data-key", "x", "--points", "3", "--device", "cpu"),
        *("--model", "hf", "--wrt", "transformer.wte", "--layers", "*.c_fc", "--rtol", "1e-5"),
    ]
    tables = []
    for place in ("out/factored_0.4.safetensors", "out/hf_0.4"):
        outcome = invoke("analyze", place, *words, "-o", "ranks.csv", "--overwrite")
        if place.endswith("tensors"):
            assert outcome.code == 1
            assert "must be next to the weights" in outcome.error
            shutil.copy("checkpoint-30/config.json", "out")
            outcome = invoke("analyze", place, *words, "-o", "ranks.csv", "--overwrite")
        assert outcome.code == 0, outcome.stderr
        tables.append(rows(tmp_path / "ranks.csv"))
    factored, dense = tables
    for one, other in zip(factored, dense, strict=True):
        for key in ("layer", "step", "local_rank"):
            assert one[key] == other[key]
        # The dense form is rounded to float32 once more.
        assert float(one["spectral_norm"]) == pytest.approx(float(other["spectral_norm"]), rel=1e-5)
    assert {one["step"] for one in factored} == {"30"}


def test_a_folder_of_the_user_is_not_written_into(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(transformers, "gpt2", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("out/hf_0.5").mkdir(parents=True)
    Path("out/hf_0.5/config.json").write_text(json.dumps({"mine": 1}))
    outcome = compress("--budget", "0.5")
    assert outcome.code == 1
    assert "hf_0.5/config.json: already exists" in outcome.error
    assert json.loads(Path("out/hf_0.5/config.json").read_text()) == {"mine": 1}
