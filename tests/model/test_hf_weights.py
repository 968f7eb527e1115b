"""Weights that fit a network of transformers only in part, or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from localrank_cli import analyze
from localrank_cli.errors import MismatchError
from tests.cli.program import invoke

pytestmark = pytest.mark.filterwarnings("ignore")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

LAYER = "transformer.h.1.mlp.c_fc"
WORDS = ("--model", "hf", "--data", "normal:3x8", "--points", "2", "--device", "cpu")


def model(seed: int = 0, kind: str = "GPT2LMHeadModel", **more: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes | more, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return getattr(transformers, kind)(config)


def save(folder: Path, made: Any, change: Any = dict, *, pickled: bool = False) -> Path:
    """Save a network, with its stored tensors changed."""
    made.save_pretrained(folder)
    file = folder / "model.safetensors"
    state = change(load_file(file))
    if pickled:
        file.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, file, metadata={"format": "pt"})
    return folder


def ones(folder: Path) -> Path:
    torch.save(torch.ones(1, 3, 8), folder / "ones.pt")
    return folder / "ones.pt"


def largest(folder: Path, layer: str, **options: Any) -> float:
    """The spectral norm of a layer at one point of ones, as localrank gives it."""
    table = analyze(
        folder, model="hf", data=ones(folder.parent), layers=layer, rtol="eps", **options
    )
    assert table["status"].eq("ok").all()
    return float(table["spectral_norm"].iloc[-1])


def naive(made: Any, layer: str) -> float:
    """The same from a network that transformers loaded, by torch's own Jacobian."""
    made = made.double().eval()
    kept: dict[str, Tensor] = {}
    made.get_submodule(layer).register_forward_hook(lambda *args: kept.update(out=args[2]))

    def function(inputs: Tensor) -> Tensor:
        made(inputs_embeds=inputs)
        return kept["out"]

    point = torch.ones(1, 3, 8, dtype=torch.float64)
    jacobian: Tensor = torch.autograd.functional.jacobian(function, point)
    out = kept["out"].numel()
    return float(torch.linalg.matrix_norm(jacobian.reshape(out, 24), 2))


def loaded(folder: Path, kind: str = "GPT2LMHeadModel") -> Any:
    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager")


def without(*parts: str) -> Any:
    return lambda state: {key: v for key, v in state.items() if not key.startswith(parts)}


def prefixed(old: str, new: str) -> Any:
    return lambda state: {new + key.removeprefix(old): value for key, value in state.items()}


# Both are float64 computations of a tiny network: they differ by rounding alone.
CLOSE = 1e-9


WRAPPERS: list[Callable[[str], str]] = [
    lambda key: f"_orig_mod.{key}",
    lambda key: f"model.{key}",
    lambda key: f"model._orig_mod.{key}",
    lambda key: f"module.net.{key}",
    lambda key: f"_fsdp_wrapped_module.{key}".replace("h.0.", "h.0._orig_mod."),
    lambda key: key.replace("h.1.", "h.1._checkpoint_wrapped_module."),
    lambda key: f"model.{key.removeprefix('transformer.')}",  # of the base model alone
    lambda key: f"a.b.{key}",
]


class TestLoaded:
    @pytest.mark.cover(1)
    @pytest.mark.parametrize("layer", [LAYER, "lm_head"])
    @pytest.mark.parametrize(
        ("change", "pickled"),
        [
            (dict, False),
            (dict, True),
            (prefixed("transformer.", ""), False),  # GPT-2 as published: the bare base model's
            (lambda state: {key: value.half() for key, value in state.items()}, False),
            (lambda state: {key: value.bfloat16() for key, value in state.items()}, True),
        ],
    )
    def test_numbers_are_those_of_from_pretrained(
        self, tmp_path: Path, change: Any, pickled: bool, layer: str
    ) -> None:
        folder = save(tmp_path / "step_1", model(), change, pickled=pickled)
        truth = naive(loaded(folder).float(), layer)
        assert largest(folder, layer) == pytest.approx(truth, rel=CLOSE)

    def test_ddp_prefix(self, tmp_path: Path) -> None:
        # from_pretrained itself does not know it: the truth is the network that was saved.
        made = model()
        folder = save(tmp_path / "step_1", made, prefixed("", "module."), pickled=True)
        assert largest(folder, LAYER) == pytest.approx(naive(made, LAYER), rel=CLOSE)

    @pytest.mark.parametrize(
        ("wrap", "beside"),
        [
            # Every second wrapper with one name beside it; all with all of them at test-long.
            pytest.param(
                wrap,
                beside,
                marks=() if index % 2 == 0 and (index - other) % 3 == 0 else pytest.mark.long,
            )
            for index, wrap in enumerate(WRAPPERS)
            for other, beside in enumerate(("", "criterion.weight", "transformer.h.0.attn.bias"))
        ],
    )
    def test_wrappers_of_training(self, tmp_path: Path, wrap: Any, beside: str) -> None:
        made = model()
        state = {wrap(key): value for key, value in made.state_dict().items()
                 if wrap("lm_head") != "model.lm_head" or key != "lm_head.weight"}  # fmt: skip
        if beside:
            state[beside if "criterion" in beside else wrap(beside)] = torch.ones(3)
        made.config.architectures = ["GPT2LMHeadModel"]
        made.config.save_pretrained(tmp_path)
        loaded = {"state_dict": state, "global_step": 7}  # of a Lightning module around it
        torch.save(loaded, tmp_path / "last.ckpt")
        truth = naive(made, LAYER)
        table = analyze(
            tmp_path, model="hf", data=ones(tmp_path), layers=LAYER, rtol="eps", device="cpu"
        )
        assert table["step"].tolist() == [7]
        assert table["spectral_norm"].item() == pytest.approx(truth, rel=CLOSE)

    def test_of_two_networks_the_named_one(self, tmp_path: Path) -> None:
        one, two = model(1), model(2)
        one.config.architectures = ["GPT2LMHeadModel"]
        one.config.save_pretrained(tmp_path)
        state = {f"{name}.{key}": value for name, made in (("student", one), ("teacher", two))
                 for key, value in made.state_dict().items()}  # fmt: skip
        torch.save(state, tmp_path / "step_7.pt")
        options = {"model": "hf", "data": ones(tmp_path), "layers": LAYER, "rtol": "eps"}
        with pytest.raises(MismatchError) as caught:
            analyze(tmp_path, **options)
        assert caught.value.advice.endswith("--weights student or --weights teacher.")
        table = analyze(tmp_path, weights="teacher", **options)
        assert table["spectral_norm"].item() == pytest.approx(naive(two, LAYER), rel=CLOSE)

    def test_tied_weights_that_differ(self, tmp_path: Path) -> None:
        def untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return state | {"lm_head.weight": torch.randn(20, 8)}

        folder = save(tmp_path / "step_1", model(), untied)
        truth = naive(loaded(folder), "lm_head")
        assert largest(folder, "lm_head") == pytest.approx(truth, rel=CLOSE)

    def test_nan_is_marked(self, tmp_path: Path) -> None:
        spoiled = {f"{LAYER}.bias": torch.full((32,), torch.nan)}
        folder = save(tmp_path / "step_1", model(), lambda state: state | spoiled)
        table = analyze(folder, model="hf", data="normal:3x8", points=1, layers=f"{LAYER},lm_head")
        assert table["status"].tolist() != ["ok", "ok"]


class TestRefused:
    def test_weights_of_another_size(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "step_1", model())
        model(n_embd=16).config.save_pretrained(folder)
        with pytest.raises(MismatchError, match=r"has shape \[24\], expected \[48\]"):
            largest(folder, LAYER)

    def test_weights_of_another_family(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        bert = transformers.BertModel(
            transformers.BertConfig(**sizes, vocab_size=20, intermediate_size=8)
        )
        folder = save(tmp_path / "step_1", bert)
        model().config.save_pretrained(folder)
        with pytest.raises(MismatchError, match=r"do not fit the model of config\.json; missing"):
            largest(folder, LAYER)

    def test_integers(self, tmp_path: Path) -> None:
        folder = save(
            tmp_path / "step_1",
            model(),
            lambda state: {key: (value * 100).to(torch.int8) for key, value in state.items()},
        )
        with pytest.raises(MismatchError, match="would be filled from int8"):
            largest(folder, LAYER)


class TestAMissingHead:
    def folder(self, place: Path) -> Path:
        made = model(kind="GPT2ForSequenceClassification", num_labels=3)
        return save(place / "step_1", made, without("score"))

    def test_layers_before_it_are_computed(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        truth = naive(loaded(folder, "GPT2Model"), "h.1.mlp.c_fc")
        assert largest(folder, LAYER) == pytest.approx(truth, rel=CLOSE)
        out = invoke(
            "analyze", str(folder), *WORDS, "--layers", LAYER, "-o", str(tmp_path / "o.csv")
        )
        assert "no chosen layer depends on it: score.weight" in out.stderr

    def test_an_untied_output_layer(self, tmp_path: Path) -> None:
        made = model(tie_word_embeddings=False)
        folder = save(tmp_path / "step_1", made, without("lm_head"))
        assert largest(folder, LAYER) == pytest.approx(naive(made, LAYER), rel=CLOSE)
        with pytest.raises(MismatchError, match=r"does not hold lm_head\.weight"):
            largest(folder, "lm_head")

    def test_the_head_is_refused_and_the_advice_works(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        with pytest.raises(MismatchError, match=r"does not hold score\.weight") as caught:
            largest(folder, "score")
        assert "--layers" in caught.value.advice
        assert largest(folder, "transformer.*c_fc") > 0


class TestOneBadOfThree:
    def series(self, place: Path) -> Path:
        for step in (1, 2, 3):
            change = without("transformer.h.1") if step == 2 else dict
            save(place / "run" / f"step_{step}", model(step), change)
        return place / "run"

    def test_it_is_skipped(self, tmp_path: Path) -> None:
        folder = self.series(tmp_path)
        table = analyze(
            folder, model="hf", data="normal:3x8", points=1, layers=LAYER, on_error="skip"
        )
        assert table["step"].tolist() == [1, 2, 3]
        assert table["status"].tolist() == ["ok", "mismatch", "ok"]

    def test_without_skip_it_is_named(self, tmp_path: Path) -> None:
        folder = self.series(tmp_path)
        with pytest.raises(MismatchError, match=r"step_2.*does not hold transformer\.h\.1"):
            analyze(folder, model="hf", data="normal:3x8", points=1, layers=LAYER)

    def test_under_follow(self, tmp_path: Path) -> None:
        folder = self.series(tmp_path)
        out = tmp_path / "o.csv"
        words = ("analyze", str(folder), *WORDS, "--layers", LAYER, "-o", str(out), "--follow",
                 "--until", "3", "--on-error", "skip")  # fmt: skip
        outcome = invoke(*words)
        assert outcome.code == 3, outcome.stderr  # finished, with failures
        assert "does not hold transformer.h.1" in out.read_text()


def hash_by_the_rule(state: dict[str, Tensor]) -> str:
    """Names, dtypes, shapes and bytes in order of name: what the first release wrote."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_a_journal_is_resumed_by_the_hash_of_the_stored_tensors(tmp_path: Path) -> None:
    # Names that the network does not have, and half precision: nothing of it is translated.
    change = prefixed("transformer.", "")
    folder = save(tmp_path / "step_1", model().half(), change)
    words = ("analyze", str(folder), *WORDS, "-o", str(tmp_path / "o.csv"))
    assert invoke(*words).code == 0
    text = next(tmp_path.glob("o.csv.*ournal")).read_text()
    found = re.findall(r'"sha256_of_tensors": ?"(\w+)"', text)
    assert found == [hash_by_the_rule(load_file(folder / "model.safetensors"))]
    os.utime(folder / "model.safetensors", ns=(10**18, 10**18))
    outcome = invoke(*words)
    assert outcome.code == 0, outcome.stderr
    assert "already finished" in outcome.stderr
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
