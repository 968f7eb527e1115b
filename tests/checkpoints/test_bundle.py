"""A series in one file is refused with lines of Python that split it, and these work."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import LocalrankError
from tests.helpers import mlp, weights

SETS = [weights(seed=seed) for seed in range(3)]


def table_of(*keys: object) -> dict[object, Any]:
    return dict(zip(keys, SETS, strict=True))


def module(seed: int) -> nn.Module:
    return mlp(4, 3, 2, seed=seed)


def steps(path: Path, **options: Any) -> list[int]:
    table = analyze(path, data="normal:4", points=1, layers="0", **options)
    return table["step"].tolist()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (SETS, [0, 1, 2]),
        ([{"model": one, "step": 7 * i} for i, one in enumerate(SETS)], [0, 7, 14]),
        (table_of(0, 50, 1000), [0, 50, 1000]),
        (table_of("0", "50", "1000"), [0, 50, 1000]),
        (table_of("step_0", "step_50", "step_1000"), [0, 50, 1000]),
        (list(table_of(0, 50, 1000).items()), [0, 50, 1000]),
        ({"history": SETS, "steps": [0, 50, 1000]}, [0, 50, 1000]),
        ({"history": SETS, "steps": torch.tensor([0, 50, 1000])}, [0, 50, 1000]),
        ({"model": SETS[0], "checkpoints": SETS, "checkpoint_epochs": [0, 9, 20]}, [0, 9, 20]),
        ({"log": {"snapshots": table_of(0, 50, 1000)}}, [0, 50, 1000]),
        (table_of(0.0, 50.0, 1000.0), [0, 50, 1000]),
        (table_of((0, 0), (0, 50), (1, 100)), [0, 50, 100]),
        (table_of(("epoch", 1), ("epoch", 2), ("epoch", 10)), [1, 2, 10]),
        (table_of(0, 50, 1000) | {"config": {"lr": 0.1}, "losses": [0.5, 0.2]}, [0, 50, 1000]),
        # Keys that are no steps: numbered in the order of the file.
        (table_of(-1, 50, 1000), [0, 1, 2]),
        (table_of(0.5, 1.0, 1.5), [0, 1, 2]),
        (list(table_of("init", 50, 1000).items()), [0, 1, 2]),
        # These need their code, so that the lines load them with it.
        ([{"model": one, "args": Namespace(lr=1.0)} for one in SETS], [0, 1, 2]),
        ([module(seed) for seed in range(3)], [0, 1, 2]),
        ({50 * seed: module(seed) for seed in range(3)}, [0, 50, 100]),
        ({"checkpoints": [{"net": module(seed)} for seed in range(3)]}, [0, 1, 2]),
    ],
)
def test_the_lines_split_it(tmp_path: Path, content: object, found: list[int]) -> None:
    torch.save(content, tmp_path / "it's mine.pth")
    with pytest.raises(LocalrankError, match="holds 3 checkpoints in one file") as caught:
        steps(tmp_path)
    lines = re.split(r"\. (?:To analyze|The keys)", caught.value.advice.split(": ", 1)[1])[0]
    exec(lines, {})  # what the user is told to run
    folder = tmp_path / "it's mine_split"
    assert str(folder) in caught.value.advice
    assert steps(folder) == found
    # By the steps in their names: files of one tick of the clock have the same time.
    in_order = sorted(folder.iterdir(), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
    for number, one in enumerate(in_order):
        saved = torch.load(one, weights_only=False)
        saved = saved.get("model", saved.get("net", saved))
        saved = saved.state_dict() if isinstance(saved, nn.Module) else saved
        assert all(torch.equal(saved[key], value) for key, value in SETS[number].items())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (table_of("init", 50, "final"), [50]),
        (table_of("init", 50.0, "final"), [50]),
        (table_of("50", "best", "100"), [50, 100]),
        (table_of("init", "step_50", "final"), [50]),
        ({"history": table_of("init", 50, "last"), "lr": 0.1}, [50]),
    ],
)
def test_names_without_a_step_are_left_to_the_user(
    tmp_path: Path, content: object, found: list[int]
) -> None:
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(LocalrankError, match="holds 3 checkpoints in one file") as caught:
        steps(tmp_path)
    lines, more = caught.value.advice.split(": ", 1)[1].split(". ", 1)
    exec(lines, {})
    assert len(list((tmp_path / "run_split").iterdir())) == 3
    assert re.search("rename (init|best|last)", more)
    assert steps(tmp_path, weights=re.findall(r"--weights (\S+)\.", more)[0]) == [0]
    assert steps(tmp_path / "run_split", pattern="*[0-9]*") == found
    assert "--pattern '*[0-9]*'" in more


def test_keys_that_are_no_steps_are_said_to_be_numbered(tmp_path: Path) -> None:
    torch.save(table_of(0.5, 1.0, 1.5), tmp_path / "run.pt")
    with pytest.raises(LocalrankError) as caught:
        steps(tmp_path)
    assert "number the checkpoints in order" in caught.value.advice


def test_runs_in_one_file_are_split_into_folders(tmp_path: Path) -> None:
    torch.save(dict(zip([(0, 0), (0, 50), (1, 0)], SETS, strict=True)), tmp_path / "run.pt")
    with pytest.raises(LocalrankError, match="holds 3 checkpoints in one file") as caught:
        steps(tmp_path)
    assert "analyze the folders in" in caught.value.advice
    exec(caught.value.advice.split(": ", 1)[1], {})
    assert steps(tmp_path / "run_split" / "0") == [0, 50]
    assert steps(tmp_path / "run_split" / "1") == [0]


@pytest.mark.parametrize(("beside", "runs"), [({}, False), ({"args": Namespace(lr=1.0)}, True)])
def test_the_lines_that_run_code_say_so(tmp_path: Path, beside: dict[str, Any], runs: bool) -> None:
    torch.save({"history": SETS, **beside}, tmp_path / "run.pt")
    with pytest.raises(LocalrankError) as caught:
        steps(tmp_path)
    assert ("since this runs its code" in caught.value.advice) is runs
    assert f"weights_only={not runs}" in caught.value.advice


def test_the_weights_beside_it_are_read_where_they_are_named(tmp_path: Path) -> None:
    torch.save({"model": SETS[0], "checkpoints": SETS}, tmp_path / "run.pth")
    with pytest.raises(LocalrankError, match="as well as weights without a step") as caught:
        steps(tmp_path)
    assert caught.value.advice.endswith("--weights model.")
    assert steps(tmp_path, weights="model") == [0]


def test_in_a_series_of_files_it_changes_nothing(tmp_path: Path) -> None:
    for step in (0, 5):
        torch.save({"model": SETS[0], "best": SETS}, tmp_path / f"step_{step}.pt")
    assert steps(tmp_path) == [0, 5]


def test_an_optimizers_states_are_no_checkpoints(tmp_path: Path) -> None:
    moments = {index: {"exp_avg": torch.ones(2)} for index in range(3)}
    optimizer = {"state": moments, "param_groups": []}
    torch.save({"model": SETS[0], "opt": optimizer, "opts": [optimizer] * 2}, tmp_path / "a.pt")
    assert steps(tmp_path) == [0]
