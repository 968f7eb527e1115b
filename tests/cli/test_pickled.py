"""Series of whole pickled modules, from the command line."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.cli.program import QUICK, invoke, run_python
from tests.helpers import NET_CODE, mlp, save_series

SAVE = """
import argparse, dataclasses, sys
if __name__ == "__main__":
    torch.manual_seed(3)
    for step in (0, 100):
        net = Net()
        torch.save(net, f"{sys.argv[1]}/whole/step_{step}.pt")
        torch.save({"model": net, "step": step, "args": argparse.Namespace(a=Net)},
                   f"{sys.argv[1]}/inside/ckpt_{step}.pt")
        torch.save(net.state_dict(), f"{sys.argv[1]}/plain/step_{step}.pt")
"""


def rows(text: str) -> list[list[str]]:
    """The numbers of a table, without the name of the run, and of the checkpoints."""
    return [
        [value for key, value in row.items() if key not in {"run", "checkpoint"}]
        for row in csv.DictReader(io.StringIO(text))
    ]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that has saved its own class, which no other process can import."""
    path = tmp_path / "train.py"
    path.write_text(NET_CODE + SAVE)
    for name in ("whole", "inside", "plain"):
        (tmp_path / name).mkdir()
    run_python(path, tmp_path)
    return path


@pytest.mark.parametrize("trust", [(), ("--trust-pickle",)])
def test_modules_of_a_script_give_the_numbers_of_their_state_dicts(
    script: Path, trust: tuple[str, ...]
) -> None:
    model = ("--model", f"{script}:Net")
    expected = invoke("analyze", str(script.parent / "plain"), *QUICK, *model)
    assert len(rows(expected.stdout)) == 4
    for name in ("whole", "inside"):
        found = invoke("analyze", str(script.parent / name), *QUICK, *model, *trust)
        assert found.code == 0, found.stderr
        assert rows(found.stdout) == rows(expected.stdout)


def test_a_pickled_mlp_needs_no_model(tmp_path: Path) -> None:
    save_series(tmp_path / "plain")
    (tmp_path / "whole").mkdir()
    for step in (0, 5, 10):
        torch.save(mlp(4, 3, 2, seed=step), tmp_path / "whole" / f"step_{step}.pt")
    expected = invoke("analyze", str(tmp_path / "plain"), *QUICK)
    found = invoke("analyze", str(tmp_path / "whole"), *QUICK)
    assert found.code == 0, found.stderr
    assert rows(found.stdout) == rows(expected.stdout)


def saved(folder: Path, *models: nn.Module, under: str = "") -> Path:
    folder.mkdir()
    for step, model in enumerate(models):
        torch.save({under: model} if under else model, folder / f"step_{step}.pt")
    return folder


def chain(*parts: nn.Module) -> nn.Sequential:
    """A 4-3-2 network with something between its layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), *parts, nn.Linear(3, 2))


@pytest.mark.cover(2)
@pytest.mark.parametrize(
    "parts",
    [
        (nn.Tanh(),), (), (nn.Dropout(), nn.SiLU(), nn.Identity()), (nn.GELU(), nn.Flatten()),
        (nn.Sequential(nn.LeakyReLU(inplace=True)),),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trust", [(), ("--trust-pickle",)])
@pytest.mark.parametrize("under", ["", "model", "generator"])
def test_a_whole_module_has_its_own_activation(
    tmp_path: Path, parts: tuple[nn.Module, ...], trust: tuple[str, ...], under: str
) -> None:
    model, x = chain(*parts), torch.randn(5, 4)
    torch.save(x, tmp_path / "x.pt")
    wrapped = nn.DataParallel(chain(*parts))
    folder = saved(tmp_path / "run", model, wrapped, under=under)
    words = ("analyze", str(folder), "--data", str(tmp_path / "x.pt"), "--layers", "*")
    found = invoke(*words, *trust)
    assert found.code == 0, found.stderr
    names = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    norms = [
        float(row["spectral_norm"]) for row in csv.DictReader(io.StringIO(found.stdout))
        if row["layer"] == names[-1]
    ]  # fmt: skip
    jacobians = [
        torch.func.jacrev(model.double().eval())(point[None])[0, :, 0] for point in x.double()
    ]
    truth = torch.linalg.matrix_norm(torch.stack(jacobians), 2).mean().item()
    # Both in float64; tables hold 9 digits.
    assert norms == [pytest.approx(truth, rel=1e-8)] * 2


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (chain(nn.LeakyReLU(0.2)), "LeakyReLU (negative_slope=0.2)"),
        (chain(nn.GELU("tanh")), "GELU (approximate=tanh)"),
        (chain(nn.LayerNorm(3, elementwise_affine=False), nn.ReLU()), "LayerNorm and relu"),
        (chain(nn.Tanh(), nn.Linear(3, 3), nn.ReLU()), "relu, tanh"),
        (nn.Sequential(nn.Softmax(-1), *chain(nn.ReLU())), "Softmax"),
    ],
)
def test_a_whole_module_that_is_more_than_an_mlp(
    tmp_path: Path, model: nn.Module, named: str
) -> None:
    folder = saved(tmp_path / "run", model)
    outcome = invoke("analyze", str(folder), *QUICK)
    assert outcome.code == 1
    assert f"step_0.pt: holds a module with {named}, which is more than" in outcome.error
    (tmp_path / "code.py").write_text(
        "import torch\n" + f"build = lambda: torch.load("
        f"{str(folder / 'step_0.pt')!r}, weights_only=False)\n"
    )
    given = invoke("analyze", str(folder), *QUICK, "--model", f"{tmp_path / 'code.py'}:build")
    assert given.code == 0, given.stderr


def test_an_activation_that_is_not_that_of_the_module(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", chain(nn.Tanh()))
    outcome = invoke("analyze", str(folder), *QUICK, "--activation", "relu")
    assert "--activation relu: the module in" in outcome.error
    assert "has tanh between its layers" in outcome.error
    assert invoke("analyze", str(folder), *QUICK, "--activation", "tanh").code == 0
    both = saved(tmp_path / "both", chain(nn.Tanh()), chain(nn.ReLU()))
    assert (
        "step_1.pt: holds a module with different parts from"
        in invoke("analyze", str(both), *QUICK).error
    )


class Own(nn.Module):
    """Its forward pass is in no file."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 3), activation, nn.Linear(3, 2)


def test_a_class_of_the_users_own(tmp_path: Path) -> None:
    """With parts other than the assumed activation it is not guessed what they are for."""
    assert invoke("analyze", str(saved(tmp_path / "relu", Own(nn.ReLU()))), *QUICK).code == 0
    folder = saved(tmp_path / "tanh", Own(nn.Tanh()))
    outcome = invoke("analyze", str(folder), *QUICK)
    assert "Own with tanh, and its forward pass is not in the file" in outcome.error
    assert invoke("analyze", str(folder), *QUICK, "--activation", "tanh").code == 0


HIDDEN = """
class Hidden:
    def __reduce__(self):
        return make, ()

def make():
    torch.manual_seed(0)
    return Net().state_dict()

if __name__ == "__main__":
    import sys
    torch.save(Hidden(), sys.argv[1])
"""


def test_names_of_a_script_are_those_of_the_model(tmp_path: Path) -> None:
    """The weights of this file are what a function of the script returns."""
    (tmp_path / "run").mkdir()
    script = tmp_path / "train.py"
    script.write_text(NET_CODE + HIDDEN)
    run_python(script, tmp_path / "run/step_1.pt")
    words: Any = ("analyze", str(tmp_path / "run"), *QUICK)
    assert "holds a __main__.make, not a state dict" in invoke(*words).error
    lost = invoke(*words, "--trust-pickle")
    assert lost.code == 1
    assert "the pickle needs __main__.make, which cannot be imported" in lost.error
    found = invoke(*words, "--trust-pickle", "--model", f"{script}:Net")
    assert found.code == 0, found.stderr
    assert len(rows(found.stdout)) == 2
