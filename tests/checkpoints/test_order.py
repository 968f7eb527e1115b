import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli import analyze
from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.run.headers import Headers
from tests.checkpoints.layouts import save_shards, trainer_state
from tests.helpers import save_epochs, weights


def steps(
    folder: Path,
    notes: list[str],
    regex: str | None = None,
    source: str | None = None,
    pattern: str | None = None,
) -> dict[str, int]:
    rule = StepRule.parse(regex, source, pattern)
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
            " 'global_step' says 100, which is used",
            "checkpoint-2: its name says step 2, its trainer_state.json ('global_step') says 200,"
            " which is used",
            "it300_step_4.pt: its name says step 4, its name (--step-regex) says 300, which is"
            " used",
        ]

    def test_an_epoch_in_a_name_conflicts_with_no_step(self, tmp_path: Path) -> None:
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
        assert notes[-1] == "the same holds for 7 more checkpoints"

    @pytest.mark.parametrize(("source", "step"), [("contents", 50), ("name", 7), ("epoch", 3)])
    def test_the_user_may_say_which(self, tmp_path: Path, source: str, step: int) -> None:
        notes: list[str] = []
        save(tmp_path / "step_7.pt", 0, step=50, epoch=3)
        assert steps(tmp_path, notes, source=source) == {"step_7.pt": step}
        assert ("epochs" in "".join(notes)) is (source == "epoch")

    def test_what_the_user_wants_is_not_there(self, tmp_path: Path) -> None:
        save(tmp_path / "step_7.pt", 0)
        with pytest.raises(SettingsError, match=r"no step was found for step_7\.pt"):
            steps(tmp_path, [], source="contents")

    @pytest.mark.parametrize(
        ("name", "pattern"),
        [
            ("net_g_{}.pth", "net_g_{step}.pth"),
            ("{}_net_G.pth", "{step}_net_G.pth"),
            ("ema_0.9999_00{}.pt", "ema_0.9999_{step}.pt"),
            ("it's at {}.pt", "it's at {step}.pt"),
            ("ckpt-{}steps.pt", "ckpt-{step}steps.pt"),
        ],
    )
    def test_names_that_differ_in_one_number(self, tmp_path: Path, name: str, pattern: str) -> None:
        for step in (5000, 10000):
            save(tmp_path / name.format(step), step)
        with pytest.raises(SettingsError, match="no step was found for") as caught:
            steps(tmp_path, [])
        words = shlex.split(caught.value.advice.split(", if")[0])
        assert words == ["Give", "--step-pattern", pattern]
        found = steps(tmp_path, [], pattern=pattern)
        assert found == {name.format(step): step for step in (5000, 10000)}

    @pytest.mark.parametrize(
        "names",
        [
            ("run_5k.pt", "run_6k.pt"),  # thousands
            ("lr0.1.pt", "lr0.2.pt"),  # no whole numbers
            ("a_1_2.pt", "a_2_3.pt"),  # two numbers
            ("a_1.pt", "b_2.pt"),
            ("a_1.pt", "a_1.pth"),
            ("a_{step}_1.pt", "a_{step}_2.pt"),
        ],
    )
    def test_names_that_differ_otherwise(self, tmp_path: Path, names: tuple[str, str]) -> None:
        for seed, name in enumerate(names):
            save(tmp_path / name, seed)
        with pytest.raises(SettingsError, match="no step was found for") as caught:
            steps(tmp_path, [])
        assert "--step-pattern" not in caught.value.advice

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
        with pytest.raises(SettingsError, match=r"no step was found for best\.pt"):
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

    def test_a_count_of_saves_is_not_a_step(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        with pytest.raises(SettingsError, match="count of saves, not a step") as caught:
            steps(tmp_path / "checkpoints", [])
        assert "checkpoint_0, checkpoint_1" in caught.value.what
        assert "--step-from name" in caught.value.advice

    def test_the_user_may_take_it(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        found = steps(tmp_path / "checkpoints", [], source="name")
        assert found == {"checkpoint_0": 0, "checkpoint_1": 1}


# 100 steps in an epoch, saved every 30 steps of the training: (epoch, step within it).
EVERY_30 = [divmod(step, 100) for step in range(30, 270, 30)]


class TestDigitGroups:
    def test_are_one_number(self, tmp_path: Path) -> None:
        for step in (500, 1000, 10_000):
            save(tmp_path / f"step_{step:_}.pt", step)
        assert list(steps(tmp_path, []).values()) == [500, 1000, 10_000]

    def test_contents_resolve_an_ambiguous_name(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for epoch, updates in ((1, 250), (2, 500)):
            name = f"checkpoint_{epoch}_{updates}.pt"
            save(tmp_path / name, epoch, num_updates=updates, epoch=epoch)
        assert list(steps(tmp_path, notes).values()) == [250, 500]
        assert notes == []

    def test_uncertain_ones_are_refused_and_each_suggested_expression_works(
        self, tmp_path: Path
    ) -> None:
        save(tmp_path / "checkpoint_1_250.pt", 1)
        save(tmp_path / "checkpoint_2_500.pt", 2)
        with pytest.raises(SettingsError, match=r"1_250 in checkpoint_1_250\.pt may be") as e:
            steps(tmp_path, [])
        for regex, found in (
            (r"(\d+_\d+)", [1250, 2500]),
            (r"(\d+)_\d+", [1, 2]),
            (r"\d+_(\d+)", [250, 500]),
        ):
            assert f"'{regex}' for step {found[0]}" in e.value.advice
            assert list(steps(tmp_path, [], regex=regex).values()) == found


class TestStepsWithinAnEpoch:
    def test_the_epoch_is_the_step_where_each_occurs_once(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save_epochs(tmp_path, [(0, 40), (1, 20), (2, 60)])
        assert steps(tmp_path, notes) == {"c_00.pt": 0, "c_01.pt": 1, "c_02.pt": 2}
        assert notes == [
            "the steps restart in each epoch (c_01.pt: epoch 1, step 20 after c_00.pt: epoch 0,"
            " step 40): the column step holds epochs"
        ]

    def test_the_same_step_in_each_epoch(self, tmp_path: Path) -> None:
        for epoch in (0, 1):
            save(tmp_path / f"epoch={epoch}-step=40.ckpt", epoch)
        assert list(steps(tmp_path, []).values()) == [0, 1]

    def test_names_alone(self, tmp_path: Path) -> None:
        for epoch, step in ((0, 40), (1, 20), (2, 60)):
            save(tmp_path / f"epoch={epoch}-step={step}.ckpt", epoch)
        assert list(steps(tmp_path, []).values()) == [0, 1, 2]

    def test_copies_are_no_further_checkpoints(self, tmp_path: Path) -> None:
        save_epochs(tmp_path, [(0, 40), (1, 20), (2, 60)])
        save(tmp_path / "last.pt", 2, epoch=2, step=60)
        save(tmp_path / "best.pt", 1, score=0.5)
        assert steps(tmp_path, []) == {"c_00.pt": 0, "c_01.pt": 1, "c_02.pt": 2}

    def test_steps_that_increase_are_kept(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save_epochs(tmp_path, [(0, 10), (0, 20), (1, 30), (3, 31)])
        save(tmp_path / "last.pt", 3, epoch=4, step=31)  # saved again after the epoch was counted
        assert list(steps(tmp_path, notes).values()) == [10, 20, 30, 31]
        assert notes == ["last.pt: left out, the same as c_03.pt (step 31)"]

    def test_a_global_step_may_continue_into_the_next_epoch(self, tmp_path: Path) -> None:
        for number, (epoch, step) in enumerate([(0, 10), (1, 20), (0, 30), (1, 40)]):
            save(tmp_path / f"c_{number}.pt", number, epoch=epoch, global_step=step)
        assert list(steps(tmp_path, []).values()) == [10, 20, 30, 40]

    def test_a_global_step_beside_the_weights(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for epoch, step in ((0, 40), (1, 20), (2, 60)):
            folder = tmp_path / f"checkpoint-{epoch}"
            save(folder / "pytorch_model.bin", epoch, epoch=epoch, step=step)
            trainer_state(folder, 100 * epoch + step)
        assert list(steps(tmp_path, notes).values()) == [40, 120, 260]
        assert notes[0].endswith(
            "the column step holds what the trainer_state.json ('global_step') says"
        )

    def test_an_epoch_length_from_the_file(self, tmp_path: Path) -> None:
        places = [(0, 50), (0, 100), (1, 50), (1, 100)]
        save_epochs(tmp_path, places, steps_per_epoch=100)
        assert list(steps(tmp_path, []).values()) == [50, 100, 150, 200]

    @pytest.mark.parametrize(
        "places",
        [
            [(0, 0), (1, 100), (2, 100), (3, 100)],  # the initial weights, and each epoch's end
            [(0, 0), (1, 40), (2, 40)],
            [(0, 50), (1, 100), (2, 100)],  # epoch 1 may be the first one, counted as completed
        ],
    )
    def test_epochs_that_may_count_from_1_are_used_themselves(
        self, tmp_path: Path, places: list[tuple[int, int]]
    ) -> None:
        notes: list[str] = []
        save_epochs(tmp_path, places, steps_per_epoch=100)
        assert list(steps(tmp_path, notes).values()) == [epoch for epoch, _ in places]
        assert "epoch" in notes[-1]

    @pytest.mark.parametrize(
        ("places", "expected"),
        [
            ([(0, 0), (0, 100), (1, 100), (2, 100)], [0, 100, 200, 300]),
            ([(0, 0), (0, 50), (1, 0), (1, 50)], [0, 50, 100, 150]),
        ],
    )
    def test_initial_weights_of_epochs_from_0(
        self, tmp_path: Path, places: list[tuple[int, int]], expected: list[int]
    ) -> None:
        save_epochs(tmp_path, places, steps_per_epoch=100)
        assert list(steps(tmp_path, []).values()) == expected

    @pytest.mark.parametrize("first", [0, 1])
    def test_epochs_of_a_length_that_even_saves_prove(self, tmp_path: Path, first: int) -> None:
        save_epochs(tmp_path, [(epoch + first, step) for epoch, step in EVERY_30])
        assert list(steps(tmp_path, []).values()) == list(range(30, 270, 30))

    @pytest.mark.parametrize(
        ("places", "entries"),
        [
            # Saved at these steps of each epoch: nothing says where the epoch ends.
            ([(0, 50), (0, 100), (1, 50), (1, 100)], {}),
            ([*EVERY_30[:4], *EVERY_30[5:]], {}),  # one was deleted
            # From 1 or from 0?
            ([(1, 50), (1, 100), (2, 50), (2, 100)], {"steps_per_epoch": 100}),
            ([(0, 0), (1, 50), (1, 100), (2, 50)], {"steps_per_epoch": 100}),
            ([(0, 50), (0, 100), (1, 50), (1, 100)], {"steps_per_epoch": 70}),
        ],
    )
    def test_nothing_is_guessed(
        self, tmp_path: Path, places: list[tuple[int, int]], entries: dict[str, Any]
    ) -> None:
        save_epochs(tmp_path, places, **entries)
        with pytest.raises(SettingsError, match="the steps restart in each epoch") as caught:
            steps(tmp_path, [])
        assert "has several checkpoints (c_0" in caught.value.what
        assert "--step-from name" in caught.value.advice
        for number, (epoch, step) in enumerate(places):
            (tmp_path / f"c_{number:02}.pt").rename(tmp_path / f"step_{1000 * epoch + step}.pt")
        found = list(steps(tmp_path, [], source="name").values())
        assert found == [1000 * epoch + step for epoch, step in places]

    def test_the_names_may_order_the_run(self, tmp_path: Path) -> None:
        notes: list[str] = []
        for epoch, step in ((0, 50), (0, 100), (1, 50), (1, 100)):
            save(tmp_path / f"step_{100 * epoch + step}.pt", epoch + step, epoch=epoch, step=step)
        with pytest.raises(SettingsError, match="the steps restart in each epoch") as caught:
            steps(tmp_path, [])
        assert caught.value.advice == "The names do: give --step-from name."
        assert list(steps(tmp_path, notes, source="name").values()) == [50, 100, 150, 200]

    def test_who_names_a_source_means_its_numbers(self, tmp_path: Path) -> None:
        notes: list[str] = []
        save_epochs(tmp_path, [(0, 40), (1, 20), (2, 60)])
        found = steps(tmp_path, notes, source="contents")
        assert list(found.values()) == [20, 40, 60]
        assert notes[-1].endswith("and are used as they are (--step-from contents)")
        assert list(steps(tmp_path, [], source="epoch").values()) == [0, 1, 2]


class TestNumbersThatAreNoSteps:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (2**63, str(2**63)),
            (-2, "-2"),
            (float("-inf"), "no number"),
            (float("nan"), "no number"),
            (float("inf"), "infinite"),
            (torch.tensor(2**63, dtype=torch.uint64), str(2**63)),
            (torch.empty((), device="meta"), "no number"),
            ("9" * 40, "over 30 digits"),
        ],
    )
    def test_in_the_file(self, tmp_path: Path, value: Any, shown: str) -> None:
        """Not passed over for the name, which may count something else."""
        save(tmp_path / "step_5.pt", 1, global_step=value)
        with pytest.raises(UnreadableError, match=f"'global_step' is .*{shown}") as caught:
            steps(tmp_path, [])
        assert str(tmp_path / "step_5.pt") in caught.value.what
        assert "--step-from name" in caught.value.advice
        assert steps(tmp_path, [], source="name") == {"step_5.pt": 5}

    @pytest.mark.parametrize("value", [-1, -1.0, torch.tensor(-1)])
    def test_a_counter_that_counted_nothing(self, tmp_path: Path, value: Any) -> None:
        save(tmp_path / "step_5.pt", 1, global_step=value)
        save(tmp_path / "checkpoint-7/pytorch_model.bin", 2)
        trainer_state(tmp_path / "checkpoint-7", -1)
        assert list(steps(tmp_path, []).values()) == [5, 7]
        save(tmp_path / "model.pt", 3, step=value)
        with pytest.raises(SettingsError, match=r"no step was found for model\.pt"):
            steps(tmp_path, [])

    @pytest.mark.parametrize("mark", ["-", " "])
    def test_the_expressions_that_unsure_names_are_given(self, tmp_path: Path, mark: str) -> None:
        save(tmp_path / f"step-2{mark}500.pt", 1)
        with pytest.raises(SettingsError, match="may be one number") as caught:
            steps(tmp_path, [])
        found = re.findall(r"'([^']+)' for step (\d+)", caught.value.advice)
        assert [int(step) for _, step in found] == [2500, 2, 500]
        for regex, step in found:
            assert list(steps(tmp_path, [], regex=regex).values()) == [int(step)]

    @pytest.mark.parametrize("text", [str(2**63), "NaN", "-2", "Infinity"])
    def test_beside_the_weights(self, tmp_path: Path, text: str) -> None:
        save(tmp_path / "checkpoint-5/pytorch_model.bin", 1)
        (tmp_path / "checkpoint-5/trainer_state.json").write_text(f'{{"global_step": {text}}}')
        with pytest.raises(UnreadableError, match=r"checkpoint-5/.*trainer_state\.json"):
            steps(tmp_path, [])

    @pytest.mark.parametrize("name", [f"step_{2**63}", "step_" + "9" * 40 + "_model_5", "9" * 31])
    def test_in_the_name(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / f"{name}.pt", 1)
        with pytest.raises(UnreadableError, match=f"{name}.pt: its name is"):
            steps(tmp_path, [])

    def test_by_a_users_own_expression(self, tmp_path: Path) -> None:
        save(tmp_path / "it-5_step_7.pt", 1)
        with pytest.raises(UnreadableError, match=r"its name \(--step-regex\) is -5"):
            steps(tmp_path, [], regex=r"it(-?\d+)")

    def test_the_largest_step(self, tmp_path: Path) -> None:
        save(tmp_path / f"step_{2**63 - 1}.pt", 1)
        frame = analyze(tmp_path, data="normal:4", points=2)
        assert set(frame["step"]) == {2**63 - 1}

    def test_skipped_ones_have_no_such_step(self, tmp_path: Path) -> None:
        save(tmp_path / "step_1.pt", 1)
        save(tmp_path / f"step_{2**63}.pt", 2)
        frame = analyze(tmp_path, data="normal:4", points=2, on_error="skip")
        left_out = frame[frame["status"] == "unreadable"]
        assert len(left_out) == 1
        assert left_out["step"].isna().all()


class TestSkippedCheckpoints:
    def test_have_the_steps_of_the_others(self, tmp_path: Path) -> None:
        for epoch, step in ((0, 40), (1, 20), (2, 60)):
            save(tmp_path / f"epoch={epoch}-step={step}.ckpt", epoch)
        (tmp_path / "epoch=3-step=10.ckpt").write_bytes(b"damaged")
        frame = analyze(tmp_path, data="normal:4", points=2, on_error="skip")
        assert frame[frame["status"] != "ok"]["step"].tolist() == [3]
