"""Weights that torch.nn.utils.prune masks: the numbers are those of `weight_orig * weight_mask`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from localrank_cli import analyze
from localrank_cli.errors import MismatchError
from tests.cli.program import invoke
from tests.helpers import mlp, renamed


def plain() -> nn.Module:
    return mlp(6, 5, 4)


def masked() -> nn.Module:
    """The same network, all of whose weights are masked."""
    model = mlp(6, 5, 4)
    for layer in (model[0], model[2]):
        prune.identity(layer, "weight")
    return model


def pruned(*names: str, structured: bool = False) -> nn.Sequential:
    model = mlp(6, 5, 4, seed=3)
    for name in names:
        layer = model.get_submodule(name)
        if structured:
            prune.ln_structured(layer, "weight", amount=0.4, n=2, dim=0)
        else:
            prune.l1_unstructured(layer, "weight", amount=0.6)
    return model


def norm(model: nn.Sequential) -> float:
    weight = model[0].weight
    assert isinstance(weight, torch.Tensor)
    return float(torch.linalg.matrix_norm(weight.detach().double()))


def found(path: Path, **options: object) -> float:
    return float(analyze(path, data="normal:6", points=2, **options)["jacobian_norm"][0])


@pytest.mark.cover(1)
@pytest.mark.parametrize("options", [{}, {"model": plain}, {"model": masked}])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize("structured", [False, True])
def test_masks_are_applied(
    tmp_path: Path, structured: bool, prefix: str, options: dict[str, Callable[[], nn.Module]]
) -> None:
    model = pruned("0", "2", structured=structured)
    torch.save(renamed(dict(model.state_dict()), prefix), tmp_path / "step_5.pt")
    # The norm of 30 numbers, computed twice in float64.
    assert found(tmp_path, **options) == pytest.approx(norm(model), rel=1e-12)


@pytest.mark.cover(1)
@pytest.mark.parametrize("options", [{}, {"model": plain}])
@pytest.mark.parametrize("name", ["0", "2"])
def test_one_layer_may_be_masked(
    tmp_path: Path, name: str, options: dict[str, Callable[[], nn.Module]]
) -> None:
    model = pruned(name)
    torch.save({"model": model.state_dict(), "epoch": 5}, tmp_path / "epoch_5.pt")
    assert found(tmp_path, **options) == pytest.approx(norm(model), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"model": plain}])
def test_within_a_whole_module(tmp_path: Path, options: dict[str, Callable[[], nn.Module]]) -> None:
    model = pruned("0", "2")
    torch.save(model, tmp_path / "step_5.pt")
    assert found(tmp_path, **options) == pytest.approx(norm(model), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"model": plain}])
def test_under_a_key(tmp_path: Path, options: dict[str, Callable[[], nn.Module]]) -> None:
    model = pruned("0", "2")
    both = {**renamed(dict(model.state_dict()), "student."), "teacher.0.weight": torch.ones(2, 2)}
    torch.save(both, tmp_path / "step_5.pt")
    assert found(tmp_path, weights="student", **options) == pytest.approx(norm(model), rel=1e-12)
    torch.save({"nets": {"g": model.state_dict()}}, tmp_path / "step_5.pt")
    assert found(tmp_path, **options) == pytest.approx(norm(model), rel=1e-12)


def test_a_note_says_so(tmp_path: Path) -> None:
    torch.save(pruned("0").state_dict(), tmp_path / "step_5.pt")
    words = ("analyze", str(tmp_path), "--data", "normal:6", "-o", str(tmp_path / "x.csv"))
    outcome = invoke(*words)
    assert "note: pruned weights are multiplied by their masks" in outcome.stderr
    assert "0.weight_orig" in invoke("inspect", str(tmp_path)).stdout


def test_a_mask_of_another_shape_is_none(tmp_path: Path) -> None:
    state = dict(pruned("0").state_dict())
    state["0.weight_mask"] = torch.ones(6)  # would be spread over the rows
    torch.save(state, tmp_path / "step_5.pt")
    words = ("analyze", str(tmp_path), "--data", "normal:6", "-o", str(tmp_path / "x.csv"))
    assert "0.weight_mask [6]" in invoke(*words).error


@pytest.mark.cover(1)
@pytest.mark.parametrize("options", [{}, {"model": plain}])
@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_within_other_wrappers(
    tmp_path: Path, wrapper: str, options: dict[str, Callable[[], nn.Module]]
) -> None:
    model = pruned("0", "2")
    torch.save(renamed(dict(model.state_dict()), wrapper), tmp_path / "step_5.pt")
    assert found(tmp_path, **options) == pytest.approx(norm(model), rel=1e-12)


@pytest.mark.parametrize(
    ("prefix", "more"),
    [
        ("", {"loss.weight": torch.ones(3)}),
        ("net.", {"loss.weight": torch.ones(3)}),
        ("module.", {"ema_model.decay": torch.ones(1)}),
        ("online_model.", renamed(dict(mlp(6, 5, 4).state_dict()), "ema_model.")),
        ("online_model.", renamed(dict(pruned("0").state_dict()), "ema_model.")),
        ("", renamed(dict(pruned("0").state_dict()), "teacher.")),
    ],
)
def test_beside_other_entries(tmp_path: Path, prefix: str, more: dict[str, torch.Tensor]) -> None:
    model = pruned("0", "2")
    torch.save({**renamed(dict(model.state_dict()), prefix), **more}, tmp_path / "step_5.pt")
    assert found(tmp_path, model=plain) == pytest.approx(norm(model), rel=1e-12)


def test_a_second_network_that_is_not_pruned_is_not_taken_for_it(tmp_path: Path) -> None:
    student, teacher = dict(pruned("0", "2").state_dict()), dict(mlp(6, 5, 4).state_dict())
    both = {**renamed(student, "student."), **renamed(teacher, "teacher.")}
    torch.save(both, tmp_path / "step_5.pt")
    with pytest.raises(MismatchError, match="several sets of weights that fit") as raised:
        found(tmp_path, model=plain)
    for name in ("student", "teacher"):
        assert f"--weights {name}" in str(raised.value)
