"""docs/formats.md names what is tested, and nothing else."""

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from localrank_cli.checkpoints.frameworks import CONTAINER_KEYS, EMA_KEYS
from tests.checkpoints.layouts import LAYOUTS, REFUSED
from tests.checkpoints.test_foreign import command_in, here
from tests.cli.program import invoke
from tests.helpers import entries, mlp, renamed, weights
from tests.test_docs import ROOT, table_rows

PAGE = ROOT / "docs/formats.md"


def test_every_layout_of_the_table_is_a_case_and_every_case_a_row() -> None:
    rows = table_rows(PAGE, "Layouts")
    assert sorted(row[0] for row in rows) == sorted(LAYOUTS)
    assert all(all(row[1:4]) for row in rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_table_shows_where_averages_are(name: str) -> None:
    (row,) = [row for row in table_rows(PAGE, "Layouts") if row[0] == name]
    assert bool(row[4]) is LAYOUTS[name].has_ema


def test_every_refusal_of_the_table_is_a_case_and_every_case_a_row() -> None:
    rows = table_rows(PAGE, "Refused layouts, and how to convert them")
    assert [row[0] for row in rows] == list(REFUSED)


def test_the_page_names_all_places() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in (*CONTAINER_KEYS, *EMA_KEYS))


def test_no_path_of_a_test_is_gone() -> None:
    for name in (
        "layouts.py",
        "test_written_by_libraries.py",
        "test_packages.py",
        "test_formats_page.py",
    ):
        assert f"tests/checkpoints/{name}" in PAGE.read_text(encoding="utf-8")
        assert (Path(__file__).parent / name).is_file()


# In the order of the layers, so that a network is inferred from each.
ONE, TWO, THREE = (weights(4, 3, 2, seed=seed) for seed in (1, 2, 3))
OTHER = weights(4, 5, 1, seed=4)  # of another network
FORK = b"\x00\x05\x16\x07" + bytes(120)
NUMBERS = ["layer", "n_in", "n_out", "local_rank", "spectral_norm", "effective_rank"]


def words_for(path: Path, *more: str) -> list[str]:
    out = path.parent / f"{path.name}.csv"
    return ["analyze", str(path), "--data", "normal:4", "--points", "3", *more, "-o", str(out)]


def numbers(path: Path, *more: str) -> tuple[list[int], pd.DataFrame, str]:
    """Return the steps, the numbers without the layers' names, and the notes of an analysis."""
    outcome = invoke(*words_for(path, *more))
    assert outcome.code == 0, outcome.stderr
    frame = pd.read_csv(path.parent / f"{path.name}.csv")
    return sorted(set(frame["step"])), frame[NUMBERS[1:]], outcome.stderr


def plain(folder: Path, *states: Any) -> pd.DataFrame:
    """Return the numbers of the same weights in a plain series."""
    place = folder / "plain"
    place.mkdir()
    for step, state in enumerate(states):
        torch.save(state, place / f"step_{step}.pt")
    return numbers(place)[1]


def as_state(name: str, content: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / name)


def whole_module() -> nn.Module:
    module = mlp(4, 3, 2)
    module.load_state_dict(ONE)
    return module


def next_to(name: str, content: bytes | torch.Tensor) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.save(ONE, folder / "step_5.pt")
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)

    return write


def extra() -> dict[str, Any]:
    return {**ONE, "0._extra_state": {"scale": torch.ones(2)}, "step": 5, "loss": 0.25}


# Row -> what writes it, the step, and what a note says.
READ: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "`model.pt` alone, or one file of any other name": (
        as_state("model.pt", ONE), 0, "model.pt: no step was found, so it is step 0",
    ),
    "`step_5.pt` with names under `module.` or `_orig_mod.`": (
        as_state("step_5.pt", renamed(ONE, "module._orig_mod.")), 5, "stripped from the weights'",
    ),
    "`step_5.pt` with `_extra_state` (an object), `step` and `loss` among the weights": (
        as_state("step_5.pt", extra()), 5, "",
    ),
    "`step_5.pt` with the weights under `nets.g`": (
        as_state("step_5.pt", {"nets": {"g": ONE}}), 5, "using the weights under 'nets.g'",
    ),
    "`step_5.pt` written by `torch.save(model, path)`": (
        as_state("step_5.pt", whole_module()), 5, "",
    ),
    "`step_5.pt` next to `inputs.pt`, a tensor": (
        next_to("inputs.pt", torch.ones(9, 4)), 5, "inputs.pt",
    ),
    "`step_5.pt` next to macOS's `._step_5.pt`": (next_to("._step_5.pt", FORK), 5, ""),
}  # fmt: skip


@pytest.mark.parametrize("row", READ)
def test_it_is_read_as_the_page_says(row: str, tmp_path: Path) -> None:
    write, step, note = READ[row]
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder)
    before = entries(folder)
    steps, found, notes = numbers(folder)
    assert steps == [step]
    assert found.equals(plain(tmp_path, ONE))
    assert note in notes
    assert ("left out" in notes) is ("inputs.pt" in before)
    assert entries(folder) == before


SPLIT: dict[str, tuple[Any, list[int]]] = {
    "`run.pt` with a list of state dicts": ([ONE, TWO, THREE], [0, 1, 2]),
    "`run.pt` with a dict that maps steps to state dicts": (
        {0: ONE, 50: TWO, 90: THREE}, [0, 50, 90],
    ),
    "`run.pt` with `checkpoints` next to `checkpoint_epochs`": (
        {"checkpoints": [ONE, TWO, THREE], "checkpoint_epochs": [0, 2, 7]}, [0, 2, 7],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", SPLIT)
def test_the_python_of_the_message_splits_it(row: str, tmp_path: Path) -> None:
    content, steps = SPLIT[row]
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(content, folder / "run.pt")
    error = invoke(*words_for(folder)).error
    exec(error.split(". Split it", 1)[-1].split(": ", 1)[1].split(". To analyze")[0], {})
    found_steps, found, _ = numbers(folder / "run_split")
    assert found_steps == steps
    assert found.equals(plain(tmp_path, ONE, TWO, THREE))


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(ONE))


def _script(path: Path) -> None:
    torch.jit.script(whole_module()).save(str(path))


def _arrays(path: Path) -> None:
    torch.save({key: value.numpy() for key, value in ONE.items()}, path)


CONVERTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "`step_5.pt` written by `torch.jit.save` (TorchScript)": (_script, "is a TorchScript file"),
    "`step_5.pt` written by `pickle.dump`": (_pickled, "is a plain pickle"),
    "`step_5.pt` with numpy arrays, written by `torch.save`": (_arrays, "holds numpy arrays"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("row", CONVERTED)
def test_the_command_of_the_message_converts_it(row: str, tmp_path: Path) -> None:
    write, what = CONVERTED[row]
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "step_5.pt")
    error = invoke(*words_for(folder)).error
    assert what in error
    here(command_in(error), folder)
    converted = folder / "converted"
    steps, found, _ = numbers(converted)
    assert steps == [5]
    assert found.equals(plain(tmp_path, ONE))


FORK_ROW = "`._step_5.pt`, passed on its own"


def test_a_resource_fork_that_is_named(tmp_path: Path) -> None:
    next_to("._step_5.pt", FORK)(tmp_path)
    error = invoke(*words_for(tmp_path / "._step_5.pt")).error
    assert "macOS resource fork" in error
    command = error.split("Delete such files: ", 1)[1].split(", or")[0]
    subprocess.run(command, shell=True, check=True)
    assert entries(tmp_path) == ["step_5.pt"]


def test_every_row_of_what_people_keep_is_a_case() -> None:
    rows = [row[0] for row in table_rows(PAGE, "Files without a known layout")]
    assert sorted(rows) == sorted([*READ, *SPLIT, *CONVERTED, FORK_ROW])


# Row -> contents; what is read with a model, and without; `None`: refused, and named in the error.
TEACHER = {"teacher.0.weight": torch.ones(2, 2)}
CASES: dict[str, list[tuple[Any, Any, Any]]] = {
    '`{"generator": ..., "optimizer": ...}`': [
        ({"generator": ONE, "optimizer": {"state": {}, "param_groups": []}}, ONE, ONE),
    ],
    '`{"generator": ..., "discriminator": ...}`': [
        ({"generator": ONE, "discriminator": OTHER}, ONE, None),
    ],
    "names under `student.` and `teacher.`": [
        ({**renamed(ONE, "student."), **renamed(OTHER, "teacher.")}, ONE, None),
        ({**renamed(ONE, "student."), **renamed(TWO, "teacher.")}, None, None),
    ],
    "names under `online_model.` and `ema_model.`": [
        ({**renamed(ONE, "online_model."), **renamed(TWO, "ema_model.")}, ONE, None),
    ],
    "names under `model.` and `criterion.weight`": [
        ({**renamed(ONE, "model."), "criterion.weight": torch.ones(2)}, ONE, ONE),
    ],
    "the network's own names and `teacher.*` or `loss.*`": [
        ({**ONE, **TEACHER}, ONE, None),
        ({**ONE, "loss.weight": torch.ones(2)}, ONE, ONE),
    ],
    "names under `generator.` and `discriminator.`, even if they form one chain": [
        ({**renamed(ONE, "generator."), **renamed(weights(2, 5, 1), "discriminator.")}, ONE, None),
        ({**renamed(ONE, "gen."), **renamed(weights(2, 5, 1), "netD.")}, ONE, None),
        ({**renamed(ONE, "generator."), **renamed(TWO, "discriminator.")}, None, None),
    ],
    "names under `encoder.` and `decoder.`, several layers each, that form one chain": [
        ({**renamed(ONE, "encoder."), **renamed(weights(2, 5, 1), "decoder.")}, ONE, None),
    ],
    '`{**model.state_dict(), "model": ...}`': [({**ONE, "model": TWO}, ONE, ONE)],
    "the network's own names and the same under `best.`": [
        ({**ONE, **renamed(TWO, "best.")}, ONE, None),
    ],
    "`online_model.` and `ema_model.` under `ema`": [
        ({"ema": {**renamed(ONE, "online_model."), **renamed(TWO, "ema_model.")}}, ONE, ONE),
    ],
}
MODEL = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()"
MODEL += ", nn.Linear(3, 2))\n"


@pytest.mark.parametrize(
    ("row", "number", "with_model"),
    [
        # Each once, with and without the network's code in turn; the rest at test-long.
        pytest.param(
            row, n, with_model, marks=pytest.mark.long if (n + at) % 2 == with_model else ()
        )
        for at, (row, cases) in enumerate(CASES.items())
        for n in range(len(cases))
        for with_model in (True, False)
    ],
)
def test_several_sets_of_weights(row: str, number: int, with_model: bool, tmp_path: Path) -> None:
    content, *read = CASES[row][number]
    expected = read[0 if with_model else 1]
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(content, folder / "step_5.pt")
    (tmp_path / "net.py").write_text(MODEL)
    model = ["--model", str(tmp_path / "net.py:net")] if with_model else []
    if expected is None:
        error = invoke(*words_for(folder, *model)).error
        choices = {key.split(".", maxsplit=1)[0] for key in content} - set(ONE) - {"0", "2"}
        assert all(f"--weights {key}" in error or key in error for key in choices), error
        return
    _, found, notes = numbers(folder, *model)
    assert found.equals(plain(tmp_path, expected))
    others = {str(key).split(".", maxsplit=1)[0] for key in content} - {"0", "2"}
    assert not others or any(name in notes for name in others), notes


def test_an_average_beside_its_weights_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    content, *_ = CASES["names under `online_model.` and `ema_model.`"][0]
    torch.save(content, folder / "step_5.pt")
    assert numbers(folder, "--weights", "ema")[1].equals(plain(tmp_path, TWO))


def test_every_row_of_several_sets_is_a_case() -> None:
    rows = table_rows(PAGE, "Several sets of weights in one file")
    assert [row[0] for row in rows] == list(CASES)
