"""Every layout is found, gives its step, and gives the right tensors bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from localrank_cli import analyze
from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.series import find_checkpoints
from localrank_cli.errors import LocalrankError
from localrank_cli.model.fill import Expected
from localrank_cli.run.headers import Headers, load_state
from tests.checkpoints.layouts import LAYOUTS, REFUSED, ema, raw
from tests.drawing import one_in
from tests.helpers import ignore, mlp

STEPS = (10, 200, 3000)
CHOICES = [(name, "raw") for name in LAYOUTS]
CHOICES += [(name, "ema") for name, layout in LAYOUTS.items() if layout.has_ema]


def loaded(
    folder: Path, chosen: str, step_from: str | None
) -> list[tuple[str, int, dict[str, Tensor]]]:
    """Name, step and tensors of every checkpoint, read as an analysis reads them."""
    rule = StepRule.parse(None, step_from)
    headers = Headers(find_checkpoints(folder, [], "", []), False, rule, chosen)
    model = mlp(4, 3, 2)
    expected = Expected(model)
    planned = [headers.plan(file, step, model, expected) for file, step in headers.steps(ignore)]
    return [(p.file.name, p.step, load_state(p, trust_pickle=False)) for p in planned]


@pytest.mark.parametrize(("name", "chosen"), CHOICES)
def test_a_series_of_that_layout(name: str, chosen: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    for step in STEPS:
        layout.write(tmp_path, step)
    found = loaded(tmp_path, chosen, layout.settings.get("step_from"))
    assert [(file, step) for file, step, _ in found] == [
        (layout.file.format(step=step), step) for step in STEPS
    ]
    for _, step, state in found:
        wanted = raw(step) if chosen == "raw" else ema(step)
        assert sorted(state) == sorted(wanted)
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", one_in(3, LAYOUTS))
def test_the_table_is_that_of_plain_files(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    for folder, case in (
        (tmp_path / "plain", LAYOUTS["safetensors"]),
        (tmp_path / "other", layout),
    ):
        folder.mkdir()
        for step in STEPS[:2]:
            case.write(folder, step)
    plain = analyze(tmp_path / "plain", data="normal:4", points=3)
    other = analyze(tmp_path / "other", data="normal:4", points=3, **layout.settings)
    assert not plain.empty
    measured = ["step", "layer_index", "local_rank", "effective_rank", "spectral_norm"]
    assert plain[measured].equals(other[measured])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_comes_with_advice(name: str, tmp_path: Path) -> None:
    write, advice = REFUSED[name]
    write(tmp_path)
    with pytest.raises(LocalrankError) as caught:
        analyze(tmp_path, data="normal:4")
    assert str(tmp_path) in caught.value.what
    assert advice in caught.value.advice


def test_a_named_pickle_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "model_final.pkl").touch()
    with pytest.raises(
        LocalrankError, match="is a plain pickle, which cannot be read without"
    ) as e:
        analyze(tmp_path / "model_final.pkl", data="normal:4")
    assert "DetectionCheckpointer" in e.value.advice
