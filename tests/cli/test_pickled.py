"""Series of whole pickled modules, from the command line."""

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.program import QUICK, invoke
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
    subprocess.run([sys.executable, path, tmp_path], check=True)
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
    subprocess.run([sys.executable, script, tmp_path / "run" / "step_1.pt"], check=True)
    words: Any = ("analyze", str(tmp_path / "run"), *QUICK)
    assert "holds a __main__.make, not a state dict" in invoke(*words).error
    lost = invoke(*words, "--trust-pickle")
    assert lost.code == 1
    assert "the pickle needs __main__.make, which cannot be imported" in lost.error
    found = invoke(*words, "--trust-pickle", "--model", f"{script}:Net")
    assert found.code == 0, found.stderr
    assert len(rows(found.stdout)) == 2
