import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli import analyze
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.checkpoints.steps import StepRule
from localrank_cli.errors import SettingsError
from localrank_cli.pipeline.headers import Headers
from tests.checkpoints.layouts import save_shards, trainer_state
from tests.helpers import weights


def steps(
    folder: Path, notes: list[str], regex: str | None = None, source: str | None = None
) -> dict[str, int]:
    rule = StepRule.parse(regex, source)
    series = find_checkpoints(folder, [], "", [], rule.names)
    found = Headers(series, False, rule).steps(notes.append)
    return {file.name: step for file, step in found}


def save(path: Path, seed: int, **entries: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights(seed=seed), **entries} if entries else weights(seed=seed), path)


class TestOrderOfTrust:
    def test_contents_then_beside_then_regex_then_name(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "checkpoint-1/pytorch_model.bin", 1, global_step=100)
        trainer_state(tmp_path / "checkpoint-1", 1000)
        save(tmp_path / "checkpoint-2/pytorch_model.bin", 2)
        trainer_state(tmp_path / "checkpoint-2", 200)
        save(tmp_path / "checkpoint-3/pytorch_model.bin", 3)
        save(tmp_path / "it300_step_4.pt", 4)
        found = steps(tmp_path, notes, regex=r"it(\d+)")
        assert found == {
            "checkpoint-3": 3,
            "checkpoint-1": 100,
            "checkpoint-2": 200,
            "it300_step_4.pt": 300,
        }
        assert notes == [
            "checkpoint-1: its trainer_state.json ('global_step') says step 1000, its entry"
            " 'global_step' says 100, which is taken",
            "checkpoint-2: its name says step 2, its trainer_state.json ('global_step') says 200,"
            " which is taken",
            "it300_step_4.pt: its name says step 4, its name (--step-regex) says 300, which is"
            " taken",
        ]

    def test_a_name_that_tells_the_epoch_differs_from_no_step(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "checkpoint_2_500.pt", 1, num_updates=500, epoch=2)
        save(tmp_path / "checkpoint3.pt", 2, num_updates=750, epoch=3)
        assert list(steps(tmp_path, notes).values()) == [500, 750]
        assert notes == []

    def test_many_differences_are_counted(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for number in range(10):
            save(tmp_path / f"step_{number}.pt", number, step=10 * number + 1)
        assert steps(tmp_path, notes)["step_9.pt"] == 91
        assert len(notes) == 4
        assert notes[-1] == "so do 7 more checkpoints"

    @pytest.mark.parametrize(("source", "step"), [("contents", 50), ("name", 7), ("epoch", 3)])
    def test_the_user_may_say_which(self, tmp_path: Path, source: str, step: int) -> None:
        notes: list[str] = []
        save(tmp_path / "step_7.pt", 0, step=50, epoch=3)
        assert steps(tmp_path, notes, source=source) == {"step_7.pt": step}
        assert ("epochs" in "".join(notes)) is (source == "epoch")

    def test_what_the_user_wants_is_not_there(self, tmp_path: Path) -> None:
        save(tmp_path / "step_7.pt", 0)
        with pytest.raises(SettingsError, match=r"no step can be told for step_7\.pt"):
            steps(tmp_path, [], source="contents")

    def test_a_regex_finds_folders(self, tmp_path: Path) -> None:
        save_shards(tmp_path / "it100k", "model", weights(seed=1))
        save_shards(tmp_path / "it200k", "model", weights(seed=2))
        found = steps(tmp_path, [], regex=r"it(\d+)k")
        assert found == {"it100k": 100, "it200k": 200}


class TestAliases:
    def test_links_and_copies_of_a_step(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for step in (10, 20):
            save(tmp_path / f"step_{step}.ckpt", step)
        (tmp_path / "latest.ckpt").symlink_to("step_20.ckpt")
        os.link(tmp_path / "step_10.ckpt", tmp_path / "best.ckpt")
        save_file(weights(seed=20), tmp_path / "model.safetensors")
        assert steps(tmp_path, notes) == {"step_10.ckpt": 10, "step_20.ckpt": 20}
        assert notes == [
            "best.ckpt: left out, the same as step_10.ckpt (step 10)",
            "latest.ckpt: left out, the same as step_20.ckpt (step 20)",
            "model.safetensors: left out, the same as step_20.ckpt (step 20)",
        ]

    def test_lightnings_last(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "epoch=1-step=10.ckpt", 1, global_step=10, epoch=1)
        save(tmp_path / "last.ckpt", 1, global_step=10, epoch=1, callbacks={"a": 1})
        assert steps(tmp_path, notes) == {"epoch=1-step=10.ckpt": 10}
        assert notes == ["last.ckpt: left out, the same as epoch=1-step=10.ckpt (step 10)"]

    def test_an_alias_with_a_step_of_its_own_stays(self, tmp_path: Path) -> None:
        save(tmp_path / "step_10.pt", 1)
        save(tmp_path / "best.pt", 2, step=7)
        assert steps(tmp_path, []) == {"best.pt": 7, "step_10.pt": 10}

    def test_an_alias_of_nothing_is_an_error(self, tmp_path: Path) -> None:
        save(tmp_path / "step_10.pt", 1)
        save(tmp_path / "best.pt", 2)
        with pytest.raises(SettingsError, match=r"no step can be told for best\.pt"):
            steps(tmp_path, [])

    def test_the_same_step_and_other_weights(self, tmp_path: Path) -> None:
        save(tmp_path / "step_10.ckpt", 1, step=10)
        save(tmp_path / "last.ckpt", 2, step=10)
        with pytest.raises(SettingsError, match="are both step 10, and their weights differ"):
            steps(tmp_path, [])

    def test_two_copies_under_plain_names(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save(tmp_path / "step_10.pt", 1)
        save(tmp_path / "step_010.pt", 1)
        assert steps(tmp_path, notes) == {"step_010.pt": 10}
        assert notes == ["step_10.pt: left out, the same as step_010.pt (step 10)"]

    def test_the_final_model_of_a_trainer(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for step in (10, 20):
            save(tmp_path / f"checkpoint-{step}/pytorch_model.bin", step)
            trainer_state(tmp_path / f"checkpoint-{step}", step)
        save_file(weights(seed=20), tmp_path / "model.safetensors")
        trainer_state(tmp_path, 20)
        (tmp_path / "final").mkdir()
        save_file(weights(seed=20), tmp_path / "final/model.safetensors")
        (tmp_path / "latest").symlink_to("checkpoint-20")
        assert list(steps(tmp_path, notes)) == ["checkpoint-10", "checkpoint-20"]
        left_out = {note.split(":")[0] for note in notes}
        assert left_out == {"latest", "model.safetensors", "final"}

    def test_other_steps_with_the_same_weights_are_kept(self, tmp_path: Path) -> None:
        save(tmp_path / "step_10.pt", 1)
        save(tmp_path / "step_20.pt", 1)
        assert list(steps(tmp_path, []).values()) == [10, 20]


class TestEpochs:
    def test_the_column_epoch(self, tmp_path: Path) -> None:
        for epoch in (1, 2):
            save(tmp_path / f"model_of_epoch_{epoch}.pt", epoch)
        frame = analyze(tmp_path, data="normal:4", points=2)
        assert frame["step"].tolist() == frame["epoch"].tolist() == [1, 1, 2, 2]
        assert list(frame.columns)[-2:] == ["message", "epoch"]

    def test_no_column_where_there_are_steps(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pt", 1, step=4, epoch=2)
        assert "epoch" not in analyze(tmp_path, data="normal:4", points=2)

    @pytest.mark.parametrize(
        ("name", "shift", "expected"),
        [
            ("checkpoint-{}.pth.tar", 0, True),
            ("{}.pt", 0, True),
            ("checkpoint-{}.pt", 1, False),
            ("step_{}.pt", 0, False),
        ],
    )
    def test_a_number_that_is_the_epoch_in_the_file(
        self, tmp_path: Path, name: str, shift: int, expected: bool
    ) -> None:
        notes: list[str] = []
        for number in (3, 4):
            save(tmp_path / name.format(number), number, epoch=number + shift)
        assert list(steps(tmp_path, notes).values()) == [3, 4]
        assert ("there are epochs" in "".join(notes)) is expected

    def test_a_constant_of_that_name_stays(self, tmp_path: Path) -> None:
        save(tmp_path / "epoch_3.pt", 1)
        (tmp_path / "localrank.toml").write_text("[columns]\nepoch = 77\n")
        frame = analyze(tmp_path, data="normal:4", points=2)
        assert set(frame["epoch"]) == {77}


class TestAccelerate:
    def write(self, folder: Path) -> None:
        for number in (0, 1):
            place = folder / f"checkpoints/checkpoint_{number}"
            save(place / "pytorch_model.bin", number)
            (place / "random_states_0.pkl").write_bytes(b"")

    def test_a_count_of_saves_is_no_step(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        with pytest.raises(SettingsError, match="count of saves, not a step") as caught:
            steps(tmp_path / "checkpoints", [])
        assert "checkpoint_0, checkpoint_1" in caught.value.what
        assert "--step-from name" in caught.value.advice

    def test_the_user_may_take_it(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        found = steps(tmp_path / "checkpoints", [], source="name")
        assert found == {"checkpoint_0": 0, "checkpoint_1": 1}
