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
from tests.helpers import entries, save_series

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
        assert all(words in error for words in ("--model hf", "--data FILE", "--wrt EMBEDDING"))

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
        assert "give --model hf and, for tokens, --wrt EMBEDDING" in error

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
