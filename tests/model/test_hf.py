"""Networks of transformers, built from the config.json beside their weights."""

import json
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from localrank_cli import analyze
from localrank_cli.errors import LocalrankError, MismatchError, ModelError
from localrank_cli.model.hf import hf_model, library, read_config, same_network
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.follow import Watch
from tests.helpers import evil_code, ignore, save_series

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}


def gpt2(transformers: Any, folder: Path, **more: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, **more,
    )  # fmt: skip
    torch.manual_seed(int(folder.name.split("-")[-1]))
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model.eval().double()


class TestAnalyze:
    def test_tokens(self, transformers: Any, tmp_path: Path) -> None:
        models = {step: gpt2(transformers, tmp_path / f"checkpoint-{step}") for step in (10, 20)}
        tokens = torch.randint(20, (3, 5))
        frame = analyze(
            tmp_path, model="hf", data=tokens, wrt="transformer.wte", rtol="eps", layers="*.c_fc"
        )
        assert frame["step"].tolist() == [10, 10, 20, 20]
        assert frame["layer"].tolist() == 2 * [
            "transformer.h.0.mlp.c_fc",
            "transformer.h.1.mlp.c_fc",
        ]
        for step, model in models.items():
            hidden: dict[str, torch.Tensor] = {}
            layer = model.transformer.h[1].mlp.c_fc
            layer.register_forward_hook(lambda *args, h=hidden: h.update(out=args[2]))

            def function(embedded: Any, model: Any = model, hidden: Any = hidden) -> Any:
                model(inputs_embeds=embedded)
                return hidden["out"]

            norms = []
            for point in tokens:
                embedded = model.transformer.wte(point[None]).detach()
                jacobian = torch.autograd.functional.jacobian(function, embedded)
                norms.append(torch.linalg.matrix_norm(jacobian.reshape(5 * 32, 5 * 8), 2).item())
            rows = frame[(frame["step"] == step) & (frame["layer"] == "transformer.h.1.mlp.c_fc")]
            assert rows["spectral_norm"].item() == pytest.approx(sum(norms) / 3, rel=1e-6)

    def test_embeddings_as_data(self, transformers: Any, tmp_path: Path) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        frame = analyze(tmp_path, model="hf", data="normal:5x8", points=2)
        assert set(frame["n_in"]) == {40}
        assert len(frame) == 2 * 4 + 1
        assert frame["status"].eq("ok").all()

    def test_an_encoder(self, transformers: Any, tmp_path: Path) -> None:
        config = transformers.BertConfig(**TINY, intermediate_size=16, max_position_embeddings=8)
        transformers.BertModel(config).save_pretrained(tmp_path / "step_1")
        tokens = torch.randint(20, (4, 6))
        frame = analyze(
            tmp_path, model="hf", data=tokens, wrt="embeddings.word_embeddings", points=2
        )
        assert frame["status"].eq("ok").all()
        assert "encoder.layer.1.output.dense" in set(frame["layer"])

    def test_a_config_beside_single_files(self, transformers: Any, tmp_path: Path) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        place = tmp_path / "series"
        place.mkdir()
        for name, to in (
            ("config.json", "config.json"),
            ("model.safetensors", "step_3.safetensors"),
        ):
            (tmp_path / "checkpoint-10" / name).rename(place / to)
        (place / "localrank.toml").write_text('model = "hf"\n')  # names no code: needs no trust
        frame = analyze(place, data="normal:5x8", points=2)
        assert set(frame["step"]) == {3}

    def test_configs_that_differ(self, transformers: Any, tmp_path: Path) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        gpt2(transformers, tmp_path / "checkpoint-20", layer_norm_epsilon=0.1)
        with pytest.raises(
            MismatchError, match=r"checkpoint-20/config\.json describes a different network"
        ):
            analyze(tmp_path, model="hf", data="normal:5x8")

    @pytest.mark.cover(1)
    @pytest.mark.parametrize(
        ("spoil", "status", "message"),
        [
            (lambda folder: (folder / "config.json").write_text("{"), "unreadable", "is not JSON"),
            (lambda folder: (folder / "config.json").unlink(), "unreadable", "cannot be read"),
            (lambda folder: (folder / "config.json").write_text("{}"), "mismatch", "describes"),
            (lambda folder: (folder / "adapter_config.json").write_text("{}"), "mismatch", "adapt"),
        ],
    )
    @pytest.mark.parametrize("bad", [10, 20, 30])
    def test_a_bad_config_of_one_checkpoint(
        self, transformers: Any, tmp_path: Path, spoil: Any, status: str, message: str, bad: int
    ) -> None:
        for step in (10, 20, 30):
            gpt2(transformers, tmp_path / f"checkpoint-{step}")
        spoil(tmp_path / f"checkpoint-{bad}")
        options: dict[str, Any] = {"model": "hf", "data": "normal:5x8", "points": 1}
        with pytest.raises(LocalrankError, match=f"checkpoint-{bad}.*"):
            analyze(tmp_path, **options)
        frame = analyze(tmp_path, on_error="skip", **options).groupby("step").first()
        found = frame["status"].to_dict()
        assert found == dict.fromkeys((10, 20, 30), "ok") | {bad: status}
        assert message in str(frame.loc[bad, "message"])

    @pytest.mark.parametrize("on_error", ["stop", "skip"])
    def test_a_later_one_under_follow(
        self, transformers: Any, tmp_path: Path, on_error: Any
    ) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        later = partial(gpt2, transformers, tmp_path / "checkpoint-20", layer_norm_epsilon=0.1)
        happenings: Any = iter([int, later, int])
        options = AnalyzeOptions(
            checkpoints=(tmp_path,), model="hf", data="normal:5x8", points=1, device="cpu",
            follow=True, until=20, on_error=on_error,
        )  # fmt: skip
        watch = Watch(options, ignore, lambda _: next(happenings)())
        plan = watch.first_plan()
        if on_error == "stop":
            with pytest.raises(MismatchError, match="describes a different network"):
                next(watch.plans(plan))
        else:
            (record,) = next(watch.plans(plan)).series[0].failures
            assert (record.step, record.status) == (20, "mismatch")


class TestBuilding:
    def test_keywords_override_the_config(self, transformers: Any, tmp_path: Path) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        model: Any = hf_model(tmp_path / "checkpoint-10", {"n_layer": 1}).build()
        assert len(model.transformer.h) == 1
        assert type(model).__name__ == "GPT2LMHeadModel"
        with pytest.raises(ModelError, match="has no entry 'n_layers'"):
            hf_model(tmp_path / "checkpoint-10", {"n_layers": 1})
        for odd in ({"n_head": "x"}, {"n_head": None}, {"__class__": 1}):
            with pytest.raises(ModelError, match="Give a value of the kind that is in"):
                hf_model(tmp_path / "checkpoint-10", odd)

    def test_without_architectures_the_bare_model(self, transformers: Any, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **TINY}))
        assert type(hf_model(tmp_path, {}).build()).__name__ == "BertModel"

    def test_a_network_that_appends_to_its_config(self, transformers: Any, tmp_path: Path) -> None:
        transformers.LevitConfig(architectures=["LevitModel"]).save_pretrained(tmp_path)
        source = hf_model(tmp_path, {})
        before = source.config.to_dict()
        source.build()
        assert source.config.to_dict() == before

    def test_floats_that_json_does_not_have(self, transformers: Any, tmp_path: Path) -> None:
        limit = (0.0, float("inf"))
        transformers.Mamba2Config(time_step_limit=limit).save_pretrained(tmp_path)
        assert "__float__" in (tmp_path / "config.json").read_text()
        assert tuple(hf_model(tmp_path, {}).config.time_step_limit) == limit

    @pytest.mark.parametrize("name", ["os.system", "pipeline", "AutoModel", "GPT2Config", "7"])
    def test_only_a_model_is_built(self, transformers: Any, tmp_path: Path, name: str) -> None:
        config = {"model_type": "bert", "architectures": [name], **TINY}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert type(hf_model(tmp_path, {}).build()).__name__ == "BertModel"

    def test_nothing_is_downloaded(self, transformers: Any, tmp_path: Path) -> None:
        gpt2(transformers, tmp_path / "checkpoint-10")
        constants = pytest.importorskip("huggingface_hub").constants
        before, connect = constants.HF_HUB_OFFLINE, socket.socket.connect
        with library():
            assert constants.HF_HUB_OFFLINE is True
            with socket.socket() as one, pytest.raises(OSError, match="no other machine"):
                one.connect(("127.0.0.1", 9))
        assert constants.HF_HUB_OFFLINE is before
        assert socket.socket.connect is connect


class TestRefused:
    @pytest.mark.parametrize("known", [True, False])
    def test_code_of_the_folder_never_runs(
        self, transformers: Any, tmp_path: Path, known: bool
    ) -> None:
        marker = tmp_path / "marker"
        folder = tmp_path / "checkpoint-10"
        gpt2(transformers, folder)
        (folder / "modeling_mine.py").write_text(evil_code(marker, "class Mine: pass\n"))
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {
            "AutoConfig": "modeling_mine.Mine", "AutoModel": "modeling_mine.Mine",
            "AutoModelForCausalLM": "modeling_mine.Mine",
        }  # fmt: skip
        config["model_type"] = "gpt2" if known else "mine"
        (folder / "config.json").write_text(json.dumps(config))
        if known:  # the library has such a model itself
            assert not analyze(folder, model="hf", data="normal:5x8", points=1).empty
        else:
            with pytest.raises(ModelError, match="code in the checkpoint's folder") as caught:
                analyze(folder, model="hf", data="normal:5x8")
            assert "--model path/to/modeling_file.py:name" in caught.value.advice
        assert not marker.exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "cannot be read"),
            ("{", "is not JSON"),
            ("[1]", "is not a JSON object"),
            ("[" * 100_000, "is not JSON"),
            ("{}", "has no 'model_type'"),
        ],
    )
    def test_configs_that_do_not_serve(
        self, transformers: Any, tmp_path: Path, text: str | None, message: str
    ) -> None:
        save_series(tmp_path, steps=[1])
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=message) as caught:
            analyze(tmp_path, model="hf", data="normal:4")
        assert "config.json" in caught.value.what

    def test_an_unknown_type(self, transformers: Any, tmp_path: Path) -> None:
        save_series(tmp_path, steps=[1])
        (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
        with pytest.raises(LocalrankError, match="nothing_known") as caught:
            analyze(tmp_path, model="hf", data="normal:4")
        assert "\n" not in str(caught.value)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_series(tmp_path, steps=[1])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    with pytest.raises(ModelError, match="transformers, which is not installed") as caught:
        analyze(tmp_path, model="hf", data="normal:4")
    assert "pip install 'localrank[transformers]'" in caught.value.advice


def test_entries_about_the_file_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 2, "transformers_version": "4.40"}')
    config = read_config(tmp_path)
    assert same_network(config, {"n_layer": 2, "torch_dtype": "bfloat16"})
    assert not same_network(config, {"n_layer": 3})
