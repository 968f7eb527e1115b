"""What a person meets first: a folder alone, without a model or data."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.cli.program import invoke, run_cold
from tests.helpers import entries, mlp, save_series

QUICK = ("--device", "cpu", "--points", "3")
NEOX = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 20}


def lines_of(outcome: Any, label: str) -> list[str]:
    return [
        line[2:].removeprefix(label).strip()
        for line in outcome.stdout.splitlines()
        if line[2:].startswith(label)
    ]


def save_conv(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for step in (1, 20):
        torch.save(nn.Conv2d(2, 3, 5).state_dict(), folder / f"step_{step}.pt")
    return folder


def save_text(folder: Path) -> Path:
    """A checkpoint of transformers by its names alone."""
    place = folder / "checkpoint-7"
    place.mkdir(parents=True)
    state = {"gpt_neox.embed_in.weight": torch.rand(20, 4), "embed_out.weight": torch.rand(20, 4)}
    save_file(state | {"gpt_neox.layers.0.x.weight": torch.rand(4)}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(NEOX))
    return folder


class TestInspect:
    def test_a_plain_mlp_and_its_command_runs(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path / "a  run", (0, 5))
        outcome = invoke("inspect", str(folder))
        assert (outcome.code, outcome.stderr) == (0, "")
        assert lines_of(outcome, "checkpoints") == ["2: steps 0, 5"]
        assert lines_of(outcome, "written by") == ["safetensors"]
        assert "0.weight 3 x 4" in lines_of(outcome, "weights")
        (command,) = lines_of(outcome, "to analyze")
        program, *words = shlex.split(command)
        assert program == "localrank"
        assert words[-2:] == ["--data", "normal:4"]
        assert invoke(*words, *QUICK).code == 0
        assert entries(tmp_path) == ["a  run"]

    def test_what_weights_do_not_show_is_said(self, tmp_path: Path) -> None:
        folder = save_series(tmp_path / "run", (0, 5))
        (reading,) = lines_of(invoke("inspect", str(folder)), "model")
        assert reading.startswith("read as Linear layers with relu between them")
        assert lines_of(invoke("inspect", str(folder), "--activation", "gelu"), "model") == []
        torch.save(mlp(4, 6, 5), tmp_path / "step_0.pt")  # a module shows it
        assert lines_of(invoke("inspect", str(tmp_path / "step_0.pt")), "model") == []

    def test_parts_of_a_whole_module_and_its_command_runs(self, tmp_path: Path) -> None:
        torch.save(nn.Sequential(mlp(4, 6, 5), nn.ReLU(), mlp(5, 3, 2)), tmp_path / "step_0.pt")
        (command,) = lines_of(invoke("inspect", str(tmp_path)), "to analyze")
        _, *words = shlex.split(command)
        assert words[-2:] == ["--data", "normal:4"]
        assert invoke(*words, *QUICK).code == 0

    @pytest.mark.parametrize("last", [nn.Tanh(), nn.LayerNorm(6), nn.LeakyReLU(0.3)])
    def test_a_whole_module_of_other_parts_needs_code(
        self, tmp_path: Path, last: nn.Module
    ) -> None:
        module = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), last, nn.Linear(6, 2, bias=False)
        )
        torch.save(module, tmp_path / "step_0.pt")
        (command,) = lines_of(invoke("inspect", str(tmp_path)), "to analyze")
        assert command.endswith("--model FILE.py:NAME --data FILE")

    def test_other_weights_need_code_and_data(self, tmp_path: Path) -> None:
        outcome = invoke("inspect", str(save_conv(tmp_path / "run")))
        assert outcome.code == 0
        assert lines_of(outcome, "written by") == ["torch.save, a state dict"]
        (command,) = lines_of(outcome, "to analyze")
        assert command.endswith("--model FILE.py:NAME --data FILE")

    def test_what_is_set_already_stays_in_the_command(self, tmp_path: Path) -> None:
        folder = str(save_conv(tmp_path / "run"))
        for words in (["--data", "normal:2x8x8"], ["--model", "net.py:build"]):
            outcome = invoke("inspect", folder, *words, "--rtol", "eps")
            (command,) = lines_of(outcome, "to analyze")
            assert " ".join(words) in command
            assert "--rtol eps" in command
            assert command.count("--data") == command.count("--model") == 1

    def test_tokens_of_transformers(self, tmp_path: Path) -> None:
        outcome = invoke("inspect", str(save_text(tmp_path / "run")))
        (command,) = lines_of(outcome, "to analyze")
        assert command.endswith("--model hf --data FILE --wrt gpt_neox.embed_in")
        assert lines_of(outcome, "written by") == ["transformers (GPTNeoXForCausalLM)"]

    def test_for_a_program(self, tmp_path: Path) -> None:
        outcome = invoke("inspect", str(save_conv(tmp_path / "run")), "--json")
        (series,) = json.loads(outcome.stdout)["series"]
        assert series["keys"][0] == {"key": "weight", "shape": [3, 2, 5, 5]}
        assert [need["words"][0] for need in series["needs"]] == ["--model", "--data"]
        assert [one["step"] for one in series["checkpoints"]] == [1, 20]

    def test_lightning_and_a_dict(self, tmp_path: Path) -> None:
        loaded = {"state_dict": {"w.weight": torch.rand(3, 2, 1, 1)}, "global_step": 4}
        torch.save(loaded | {"pytorch-lightning_version": "2.4"}, tmp_path / "a.ckpt")
        assert lines_of(invoke("inspect", str(tmp_path)), "written by") == ["Lightning 2.4"]
        torch.save(loaded, tmp_path / "a.ckpt")
        found = lines_of(invoke("inspect", str(tmp_path)), "written by")
        assert found == ["torch.save, a dict of state_dict, global_step"]

    def test_a_damaged_checkpoint_is_left_out(self, tmp_path: Path) -> None:
        (save_conv(tmp_path) / "step_3.pt").write_bytes(b"torn")
        outcome = invoke("inspect", str(tmp_path))
        assert outcome.code == 3
        assert "step_3.pt" in lines_of(outcome, "left out")[0]

    def test_each_of_two_series_has_its_command(self, tmp_path: Path) -> None:
        a, b = save_conv(tmp_path / "a"), save_series(tmp_path / "b", (1,))
        commands = lines_of(invoke("inspect", str(a), str(b), "--rtol", ".1"), "to analyze")
        assert commands == [
            f"localrank analyze {a} --rtol .1 --model FILE.py:NAME --data FILE",
            f"localrank analyze {b} --rtol .1 --data normal:4",
        ]

    def test_settings_of_the_folder_count(self, tmp_path: Path) -> None:
        (save_series(tmp_path, (1,)) / "localrank.toml").write_text('data = "normal:4"')
        assert lines_of(invoke("inspect", str(tmp_path), "--no-time"), "to analyze") == []


class TestAnalyze:
    def test_everything_of_transformers_at_once(self, tmp_path: Path) -> None:
        error = invoke("analyze", str(save_text(tmp_path / "run"))).error
        wrt = "--wrt gpt_neox.embed_in"
        assert all(words in error for words in ("--model hf", "--data FILE", wrt))

    def test_the_name_of_an_embedding_that_the_library_knows(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1}
        config = transformers.T5Config(**sizes, num_heads=2)
        for kind, wrt in (("T5ForConditionalGeneration", "shared"), ("T5EncoderModel", "shared")):
            folder = tmp_path / kind
            getattr(transformers, kind)(config).save_pretrained(folder / "checkpoint-7")
            assert f"--wrt {wrt} (the embedding" in invoke("analyze", str(folder)).error

    def test_a_family_that_no_one_knows(self, tmp_path: Path) -> None:
        folder = save_text(tmp_path / "run")
        (folder / "checkpoint-7" / "config.json").write_text(
            json.dumps(NEOX | {"model_type": "unheard_of"})
        )
        state = {"lookup.weight": torch.rand(20, 4), "norm.weight": torch.rand(4)}
        save_file(state, folder / "checkpoint-7" / "model.safetensors")
        error = invoke("analyze", str(folder)).error
        assert "--wrt EMBEDDING (the embedding's name" in error
        assert "the next error names the embeddings" in error

    def test_code_and_data_at_once(self, tmp_path: Path) -> None:
        error = invoke("analyze", str(save_conv(tmp_path / "run"))).error
        assert "--model FILE.py:NAME" in error
        assert "--data FILE" in error

    def test_data_of_a_plain_mlp_by_their_size(self, tmp_path: Path) -> None:
        assert "--data normal:4" in invoke("analyze", str(save_series(tmp_path))).error

    def test_a_config_beside_weights_that_are_no_mlp(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(3, 2).long(), tmp_path / "x.pt")
        folder = str(save_text(tmp_path / "run"))
        error = invoke("analyze", folder, "--data", str(tmp_path / "x.pt")).error
        assert "give --model hf and, for tokens, --wrt gpt_neox.embed_in" in error

    @pytest.mark.parametrize("beside", ["adapter", "no weights", "fifo", "other"])
    def test_a_config_that_shows_nothing(self, tmp_path: Path, beside: str) -> None:
        place = save_text(tmp_path / "run") / "checkpoint-7"
        if beside == "adapter":
            (place / "adapter_config.json").write_text("{}")
        elif beside == "no weights":
            (place / "model.safetensors").unlink()
        else:
            (place / "config.json").unlink()
            if beside == "fifo":
                os.mkfifo(place / "config.json")
            else:
                (place / "config.json").write_text('["of", "another", "program"]')
        outcome = invoke("analyze", str(tmp_path / "run"))
        assert outcome.code == 1
        assert "--model hf" not in outcome.error

    def test_it_does_not_wait_for_torch(self, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        folder = str(save_text(tmp_path / "run"))
        outcome = run_cold("analyze", folder, env=os.environ | {"PYTHONPATH": path})
        assert "no data to take points from" in outcome.error


NETS = """
from torch import nn
def conv():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 3)
    )
def flat():
    return nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
def colour():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
"""


# Axes that were joined, and one that was added; the rest at test-long.
SHAPES: list[Any] = [(64,), (1, 1, 8, 8)]
SHAPES += [pytest.param(shape, marks=pytest.mark.long) for shape in [(8, 8), (8, 8, 1)]]


class TestDataShape:
    """Points whose shape is not the one that the network takes."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Any:
        (tmp_path / "nets.py").write_text(NETS)
        names: dict[str, Any] = {}
        exec(NETS, names)  # the text above

        def words(net: str, data: torch.Tensor | str, *more: str) -> Any:
            torch.manual_seed(0)
            folder = tmp_path / net
            folder.mkdir(exist_ok=True)
            torch.save(names[net]().state_dict(), folder / "step_1.pt")
            if not isinstance(data, str):
                torch.save(data, tmp_path / "x.pt")
            source = data if isinstance(data, str) else str(tmp_path / "x.pt")
            model = f"{tmp_path}/nets.py:{net}"
            return invoke("analyze", str(folder), "--model", model, "--data", source, *QUICK, *more)

        return words

    def images(self) -> torch.Tensor:
        return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("there", SHAPES)
    def test_the_error_proposes_what_works(self, run: Any, there: tuple[int, ...]) -> None:
        data = self.images()
        expected = run("conv", data)
        assert expected.code == 0
        assert "give --data-shape 1x8x8" in run("conv", data.reshape(9, *there)).error
        found = run("conv", data.reshape(9, *there), "--data-shape", "1x8x8")
        assert (found.code, found.stdout) == (0, expected.stdout)

    def test_a_network_that_takes_flat_points(self, run: Any) -> None:
        data = self.images()
        assert "give --data-shape 64." in run("flat", data).error
        expected = run("flat", data.reshape(9, 64))
        assert run("flat", data, "--data-shape", "64").stdout == expected.stdout

    def test_channels_last(self, run: Any) -> None:
        data = torch.rand(9, 8, 8, 3)
        assert "save x.permute(0, 3, 1, 2)" in run("colour", data).error
        assert run("colour", data.permute(0, 3, 1, 2)).code == 0
        error = run("colour", data, "--data-shape", "3x8x8").error
        assert "would mix up their axes" in error

    def test_random_points_name_their_shape_themselves(self, run: Any) -> None:
        assert "give --data normal:1x8x8." in run("conv", "normal:64").error
        error = run("conv", "normal:64", "--data-shape", "1x8x8").error
        assert "Give --data normal:1x8x8 alone" in error

    def test_resuming_compares_it(self, run: Any, tmp_path: Path) -> None:
        data = self.images().reshape(9, 64)
        out = ("-o", str(tmp_path / "r.csv"))
        assert run("flat", data, *out).code == 0
        error = run("flat", data.reshape(9, 8, 8), *out, "--data-shape", "64").error
        assert "differ" in error or "was" in error
        manifest = tmp_path / "r.csv.json"
        run("flat", data, "--data-shape", "64", *out, "--overwrite")
        assert json.loads(manifest.read_text())["series"][0]["data_shape"] == [64]
        error = run("flat", data, *out).error
        assert "data shape was [64] and is now not set" in error

    def test_in_the_folder(self, run: Any, tmp_path: Path) -> None:
        data = self.images().reshape(9, 64)
        expected = run("conv", data, "--data-shape", "1x8x8")
        torch.save(data, tmp_path / "conv/x.npz.pt")
        settings = 'data = "x.npz.pt"\ndata-shape = [1, 8, 8]\n'
        (tmp_path / "conv/localrank.toml").write_text(settings)
        model = f"{tmp_path}/nets.py:conv"
        found = invoke("analyze", str(tmp_path / "conv"), "--model", model, *QUICK)
        assert found.stdout == expected.stdout
