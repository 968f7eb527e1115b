"""A network of which parts are in no checkpoint: refused, or let through by name."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import ModelError
from localrank_cli.run.plan import series_settings
from tests.cli.program import invoke, run

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, saved=False, seed=None):
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        features = torch.randn(3, 8)
        if saved:
            self.register_buffer("features", features)
        else:
            self.features = features
        self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a((x @ self.features).sin())))
"""
QUICK = ("--data", "normal:3", "--points", "4", "--device", "cpu")
MESSAGE = "--allow-unsaved: no checkpoint holds features"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    series = tmp_path / "run"
    series.mkdir()
    for step in (1, 2):
        torch.manual_seed(step)
        state = nn.ModuleDict({"a": nn.Linear(8, 5), "b": nn.Linear(5, 4)}).state_dict()
        torch.save(state, series / f"step_{step}.pt")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return [str(folder / "run"), "--model", f"{folder / 'net.py'}:Net", *QUICK, *more]


def table(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


@pytest.mark.parametrize("command", ["analyze", "inspect", "submit"])
def test_it_is_refused_and_the_fixes_work(folder: Path, command: str) -> None:
    more = ["-o", str(folder / "out.csv"), "--workers", "1"] if command == "submit" else []
    found = invoke(command, *words(folder, *more))
    assert found.code == 1
    assert "net.py:Net: features differs each time" in found.error
    assert "torch.manual_seed(0)" in found.error
    assert "self.register_buffer(NAME, TENSOR)" in found.error
    assert "--allow-unsaved" in found.error
    start = run if command == "submit" else invoke
    assert start(command, *words(folder, *more, "--model-arg", "seed=0")).code == 0


def test_a_buffer_that_checkpoints_hold_is_fine(folder: Path) -> None:
    for path in (folder / "run").iterdir():
        torch.save({**torch.load(path), "features": torch.ones(3, 8)}, path)
    found = invoke("analyze", *words(folder, "--model-arg", "saved=true"))
    assert found.code == 0
    assert "no checkpoint holds" not in found.stdout + found.stderr


def test_let_through_it_is_the_same_at_every_start_and_named(folder: Path) -> None:
    first, second = (run("analyze", *words(folder, "--allow-unsaved")) for _ in range(2))
    assert first.code == 0
    assert first.stdout == second.stdout
    header, *rows = table(first.stdout)
    assert {row[header.index("message")] for row in rows} == {MESSAGE}
    assert {row[header.index("status")] for row in rows} == {"ok"}
    # The numbers are those of the features in the network, which a fixed seed gives.
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        frame = analyze(
            folder / "run", model=f"{folder / 'net.py'}:Net", data=torch.ones(2, 3),
            layers="a", allow_unsaved=True,
        )  # fmt: skip
        states.append(frame.to_csv())
    assert states[0] == states[1]


@pytest.mark.processes
def test_workers_say_the_same(folder: Path) -> None:
    alone = invoke("analyze", *words(folder, "--allow-unsaved"))
    out = folder / "out.csv"
    command = words(folder, "--allow-unsaved", "--workers", "2", "-o", str(out))
    command = [word for word in command if word not in {"--device", "cpu"}]
    assert run("submit", *command).code == 0
    assert out.read_text() == alone.stdout


def test_shards_of_points_merge_with_the_message(folder: Path) -> None:
    (folder / "run" / "step_2.pt").unlink()
    for shard in ("0/2", "1/2"):
        command = words(folder, "--allow-unsaved", "--shard", shard, "-o", str(folder / "parts"))
        assert invoke("analyze", *command).code == 0
    assert invoke("merge", str(folder / "parts"), "-o", str(folder / "out.csv")).code == 0
    header, *rows = table((folder / "out.csv").read_text())
    assert {row[header.index("message")] for row in rows} == {MESSAGE}


def test_kept_singular_values_know_it(folder: Path) -> None:
    kept = folder / "kept"
    command = words(folder, "--allow-unsaved", "--spectra", str(kept))
    assert invoke("analyze", *command).code == 0
    found = invoke("rethreshold", str(kept), "--atol", "0.1")
    header, *rows = table(found.stdout)
    assert {row[header.index("message")] for row in rows} == {MESSAGE}


def test_going_on_without_it_is_refused(folder: Path) -> None:
    out = ("-o", str(folder / "out.csv"))
    assert invoke("analyze", *words(folder, "--allow-unsaved", *out)).code == 0
    assert invoke("analyze", *words(folder, *out)).code == 1
    assert invoke("analyze", *words(folder, "--allow-unsaved", *out)).code == 0


def test_a_run_of_a_version_without_the_check_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("-o", str(folder / "out.csv"))
    for more in (["--model-arg", "seed=0"], ["--allow-unsaved"]):
        with monkeypatch.context() as patched:
            patched.setattr(
                "localrank_cli.run.resume.series_settings",
                lambda series: {k: v for k, v in series_settings(series).items() if k != "unsaved"},
            )
            assert invoke("analyze", *words(folder, *more, *out, "--overwrite")).code == 0
        again = invoke("analyze", *words(folder, *more, *out))
        if more == ["--allow-unsaved"]:
            # Those numbers are of some other draw.
            assert (
                "the list of parts that no checkpoint holds (--allow-unsaved) was [] and"
                in again.error
            )
        else:
            assert again.code == 0
            assert "resuming: 2 of 2" in again.stderr


def test_what_no_seed_reaches_is_not_let_through(folder: Path) -> None:
    unseeded = "torch.tensor(np.random.default_rng().normal(size=(3, 8)))"
    code = CODE.replace("torch.randn(3, 8)", unseeded)
    (folder / "net.py").write_text("import numpy as np\n" + code)
    found = invoke("analyze", *words(folder, "--allow-unsaved"))
    assert found.code == 1
    assert "features differs at every start" in found.error
    assert "default_rng(0)" in found.error


def test_a_module_made_at_import_cannot_be_compared(folder: Path) -> None:
    (folder / "net.py").write_text(f"{CODE}\nNET = Net()\ndef build():\n    return NET\n")
    command = [word.replace("net.py:Net", "net.py:build") for word in words(folder)]
    found = invoke("analyze", *command)
    assert found.code == 1
    assert "no checkpoint holds features" in found.error
    assert "Build the module inside the function" in found.error
    assert invoke("analyze", *command, "--allow-unsaved").code == 0


# A cache that is filled in the forward pass is emptied after it, and so drawn again in each.
FORWARD = "the forward pass draws"

# What is drawn where no attribute leads to it: a line of code, and what the forward pass reads.
OUTSIDE = {
    "global variable": ("TABLE = torch.randn(3, 8)", "TABLE", "forward.TABLE differs"),
    "cached function": (
        "@functools.cache\ndef table(): return torch.randn(3, 8)", "table()", FORWARD),
    "lazy global": (
        "TABLE = {}", "TABLE.setdefault(0, torch.randn(3, 8))", FORWARD),
    "imported file": ("import beside_unsaved", "beside_unsaved.TABLE", "beside_unsaved.TABLE"),
    "file imported late": (
        "", "__import__('late_unsaved').table()", "the input of 'a'"),
    "number without a seed": (
        "class Rate: value = random.SystemRandom().random()",
        "(Rate.value * torch.ones(3, 8).cumsum(1))", "the input of 'a'"),
}  # fmt: skip
BESIDE = """
import functools, torch
TABLE = torch.randn(3, 8)
@functools.cache
def table(): return torch.randn(3, 8)
"""


def write_outside(folder: Path, line: str, value: str, seed: str = "") -> None:
    line, value = (text.replace("torch.randn", f"{seed}torch.randn") for text in (line, value))
    code = CODE.replace("torch.randn(3, 8)", "0").replace("self.features)", f"{value}.to(x))")
    (folder / "net.py").write_text(f"import functools, random\n{code}\n{line}\n")
    beside = "late_unsaved.py" if "late" in value else "beside_unsaved.py"
    sys.modules.pop("late_unsaved", None)  # as at the start of a process
    (folder / beside).write_text(BESIDE.replace("torch.randn", f"{seed}torch.randn"))


@pytest.mark.parametrize(
    "name",
    # The cache of a function shows where that of a lazy global does.
    [
        pytest.param(name, marks=pytest.mark.long if name == "cached function" else ())
        for name in OUTSIDE
    ],
)
def test_what_is_drawn_outside_the_module_is_refused(folder: Path, name: str) -> None:
    line, value, place = OUTSIDE[name]
    (folder / "run/step_2.pt").unlink()  # two builds are compared before any checkpoint
    write_outside(folder, line, value)
    found = invoke("analyze", *words(folder))
    assert found.code == 1
    assert place in found.error
    # The suggestions work.
    if place == FORWARD:
        assert "with a fixed seed" in found.error
        write_outside(folder, line, value, "torch.manual_seed(0) and ")
        assert invoke("analyze", *words(folder)).code == 0
        return
    assert "--allow-unsaved" in found.error
    if name == "number without a seed":
        found = invoke("analyze", *words(folder, "--allow-unsaved"))
        assert "differ at every start" in found.error
    else:
        first, second = (invoke("analyze", *words(folder, "--allow-unsaved")) for _ in range(2))
        assert first.code == 0
        assert first.stdout == second.stdout
        assert "--allow-unsaved: no checkpoint holds" in first.stdout
        write_outside(folder, line, value, "torch.manual_seed(0) and ")
        assert invoke("analyze", *words(folder)).code == 0


def test_code_that_cannot_run_twice_is_analyzed_with_a_note(folder: Path) -> None:
    once = "import math\nassert not hasattr(math, 'unsaved_once')\nmath.unsaved_once = 1\n"
    (folder / "net.py").write_text(CODE + once)
    try:
        found = invoke("analyze", *words(folder, "--model-arg", "seed=0"))
    finally:
        delattr(math, "unsaved_once")
    assert found.code == 0
    assert "cannot run a second time" in found.stderr


class Fills(nn.Module):
    """Its own loading gives the mask that is there to a file that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.register_buffer("mask", torch.rand(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if prefix + "old" in state:
            state[prefix + "a.weight"] = state.pop(prefix + "old")
        state.setdefault(prefix + "mask", self.mask)
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, x: Tensor) -> Any:
        return self.a(x) * self.mask


class Root(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Fills())


def test_what_the_models_own_loading_leaves_is_found(tmp_path: Path) -> None:
    state = {"0.old": torch.ones(3, 3), "0.a.bias": torch.ones(3)}
    torch.save(state, tmp_path / "step_1.pt")
    torch.save(state | {"0.mask": torch.ones(3)}, tmp_path / "step_2.pt")
    with pytest.raises(ModelError, match=r"Root: 0\.mask differs"):
        analyze(tmp_path, model=Root, data="normal:3")
    assert analyze(tmp_path / "step_2.pt", model=Root, data="normal:3")["status"].eq("ok").all()
