"""Classes that want arguments get those that the checkpoints record, from the command line."""

import argparse
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from tests.cli.program import invoke

HEAD = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class NetConfig:
    hidden: int = 3
    act: str = "sin"
    scale: float = 1.0

"""
NET = """
class Net(nn.Module):
    def __init__(self, {parameters}):
        super().__init__()
        self.a, self.b = nn.Linear(4, {hidden}), nn.Linear({hidden}, 2)
        self.act = {act}

    def forward(self, x):
        return self.b(getattr(torch, self.act)(self.a(x)))
"""
BY_NAME = HEAD + NET.format(parameters="hidden, act", hidden="hidden", act="act")
WITH_DEFAULTS = BY_NAME.replace("hidden, act)", 'hidden=5, act="sin", p=0.5)')
CONFIG = HEAD + NET.format(parameters="config", hidden="config.hidden", act="config.act")
ITEMS = HEAD + NET.format(parameters="config", hidden="config['hidden']", act="config.get('act')")
ANNOTATED = CONFIG.replace("config)", "config: 'NetConfig | None' = None)")
NO_CLASS = CONFIG.replace("class NetConfig", "class Net_Conf_")
KEYWORDS = BY_NAME.replace("hidden, act)", "**kw)").replace(
    "super().", "hidden, act = kw['hidden'], kw['act']; super()."
)
RIGHT = {"hidden": 5, "act": "tanh"}
OPTIONS = ("--data", "normal:4", "--points", "3", "--device", "cpu")


@dataclass
class NetConfig:
    hidden: int
    act: str


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters."""


def state(step: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(step)
    a, b = nn.Linear(4, 5), nn.Linear(5, 2)
    return {
        "a.weight": a.weight.data,
        "a.bias": a.bias.data,
        "b.weight": b.weight.data,
        "b.bias": b.bias.data,
    }


@dataclass
class Case:
    """A folder of two checkpoints, and the code of their network."""

    folder: Path

    def save(self, code: str, *beside: dict[str, object]) -> "Case":
        (self.folder / "run").mkdir(exist_ok=True)
        (self.folder / "net.py").write_text(code)
        for step, more in zip((0, 7), beside * (2 // len(beside)), strict=True):
            torch.save({"state_dict": state(step), **more}, self.folder / "run" / f"step_{step}.pt")
        return self

    def run(self, *options: str, name: str = "Net") -> Any:
        model = f"{self.folder / 'net.py'}:{name}"
        return invoke("analyze", str(self.folder / "run"), "--model", model, *OPTIONS, *options)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def norms(text: str) -> list[float]:
    rows = csv.DictReader(io.StringIO(text))
    return [float(row["jacobian_norm"]) for row in rows if row["layer"] == "b"]


def of_tanh(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z) ** 2


def expected_norms(slope: Callable[[Tensor], Tensor] = of_tanh) -> list[float]:
    """The mean norm of B diag(act'(A x + a)) A at the points of --data normal:4, written out."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = []
    for step in (0, 7):
        w = {key: value.double() for key, value in state(step).items()}
        each = [
            (w["b.weight"] * slope(w["a.weight"] @ x + w["a.bias"])) @ w["a.weight"] for x in points
        ]
        found.append(math.fsum(float(one.norm()) for one in each) / 3)
    return found


@pytest.mark.parametrize(
    ("code", "beside"),
    [
        (BY_NAME, {"hyper_parameters": AttributeDict(RIGHT, lr=0.1)}),
        (BY_NAME, {"config": {"model": RIGHT, "optim": {"act": "sin"}}}),
        (BY_NAME, {"model_args": RIGHT, "config": {"act": "sin", "hidden": 9}}),
        (WITH_DEFAULTS, {"hyper_parameters": RIGHT}),
        (BY_NAME + "\ndef build(hidden=5, act='sin'): return Net(hidden, act)", {"hparams": RIGHT}),
        (CONFIG, {"model_args": {**RIGHT, "scale": 2.0}}),
        (CONFIG, {"config": NetConfig(5, "tanh")}),
        (ANNOTATED, {"hyper_parameters": {"config": RIGHT}}),
        (NO_CLASS, {"args": argparse.Namespace(**RIGHT)}),
        (ITEMS, {"config": {**RIGHT, "lr": 1}}),
        (KEYWORDS, {"hyper_parameters": RIGHT}),
        # The same with the place of another case, or with less in it.
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                (BY_NAME, {"model_args": RIGHT}),
                (BY_NAME, {"args": argparse.Namespace(**RIGHT, lr=0.1, fn=torch.relu)}),
                (ANNOTATED, {"config": {**RIGHT, "lr": 1}}),
                (NO_CLASS, {"config": {**RIGHT, "lr": 1, "fn": torch.relu}}),
            )
        ),
    ],
)  # fmt: skip
def test_the_numbers_are_those_of_the_recorded_arguments(
    case: Case, code: str, beside: dict[str, object]
) -> None:
    name = "build" if "def build" in code else "Net"
    found = case.save(code, beside).run(name=name)
    assert found.code == 0, found.stderr
    # Rounding of a few products of float64, and the table's 9 digits.
    assert norms(found.stdout) == pytest.approx(expected_norms(), rel=1e-8)
    assert "step_0.pt: " in found.stderr
    assert "tanh" in found.stderr


@pytest.mark.parametrize(
    "code",
    [
        WITH_DEFAULTS,
        CONFIG,
        *(pytest.param(code, marks=pytest.mark.long) for code in (BY_NAME, ANNOTATED)),
    ],
)
def test_a_config_beside_the_checkpoints_records_them(case: Case, code: str) -> None:
    """As PyTorchModelHubMixin of huggingface_hub writes it; with defaults, all shapes may fit."""
    path = case.save(code, {}).folder / "run" / "config.json"
    path.write_text(json.dumps({**RIGHT, "scale": 1.0}))
    found = case.run()
    assert norms(found.stdout) == pytest.approx(expected_norms(), rel=1e-8), found.stderr
    assert "config.json: " in found.stderr


def test_a_config_in_each_folder(case: Case) -> None:
    case.save(BY_NAME, {})
    for step, act in ((0, "tanh"), (7, "sin")):
        inner = case.folder / "run" / f"step_{step}"
        inner.mkdir()
        (inner.parent / f"{inner.name}.pt").rename(inner / "pytorch_model.bin")
        (inner / "config.json").write_text(json.dumps({**RIGHT, "act": act}))
    error = case.run().stderr
    assert "step_7/config.json: config.act is 'sin', but 'tanh' in " in error


def test_what_the_checkpoint_records_comes_before_a_config_beside_it(case: Case) -> None:
    case.save(BY_NAME, {"args": RIGHT})
    (case.folder / "run" / "config.json").write_text(json.dumps({**RIGHT, "act": "sin"}))
    assert norms(case.run().stdout) == pytest.approx(expected_norms(), rel=1e-8)


def test_a_config_of_transformers_is_left_to_it(case: Case) -> None:
    case.save(WITH_DEFAULTS, {})
    (case.folder / "run" / "config.json").write_text(json.dumps({"model_type": "x", "act": "tanh"}))
    assert norms(case.run().stdout) == pytest.approx(expected_norms(torch.cos), rel=1e-8)


def test_arguments_of_the_user_win(case: Case) -> None:
    found = case.save(BY_NAME, {"model_args": RIGHT}).run("--model-arg", "act=sin")
    assert norms(found.stdout) == pytest.approx(expected_norms(torch.cos), rel=1e-8)


def test_the_note_names_what_is_left_out_and_what_is_a_default(case: Case) -> None:
    found = case.save(ANNOTATED, {"config": {**RIGHT, "lr": 1}}).run()
    assert "config=NetConfig(hidden=5, act='tanh') (entry 'config')" in found.stderr
    assert "NetConfig has no field for lr; at the default of NetConfig: scale" in found.stderr


@pytest.mark.parametrize("code", [BY_NAME, ANNOTATED, CONFIG, NO_CLASS])
def test_checkpoints_that_record_other_arguments_are_refused(case: Case, code: str) -> None:
    one, other = {**RIGHT, "scale": 1.0, "lr": 1}, {"hidden": 5, "act": "sin", "scale": 1.0}
    found = case.save(code, {"config": one}, {"config": other}).run()
    assert found.code == 1
    error = found.stderr.splitlines()[-1]
    assert all(text in error for text in ("step_0.pt", "step_7.pt", "act", "'tanh'", "'sin'"))


def test_other_values_of_what_is_not_passed_do_not_matter(case: Case) -> None:
    for code in (BY_NAME, ANNOTATED, NO_CLASS):
        one, other = {**RIGHT, "lr": 1}, {**RIGHT, "lr": 2}
        found = case.save(code, {"config": one}, {"config": other}).run()
        assert norms(found.stdout) == pytest.approx(expected_norms(), rel=1e-8), found.stderr


@pytest.mark.parametrize(
    ("code", "beside", "texts"),
    [
        (BY_NAME, {"args": {**RIGHT, "act": nn.Tanh}}, ("args.act", "Tanh", "--model-arg act")),
        (BY_NAME, {"args": {**RIGHT, "act": "https://x.y/z"}}, ("args.act", "https://x.y/z")),
        (ANNOTATED, {"args": {**RIGHT, "act": nn.Tanh}}, ("args.act", "NetConfig", "def make()")),
        (NO_CLASS, {"args": {**RIGHT, "act": nn.Tanh}}, ("act", "Tanh", "FILE.py:make")),
        (NO_CLASS.replace("super()", "dict(**vars(config)); super()"),
         {"args": {**RIGHT, "fn": nn.Tanh}}, ("fn", "Tanh", "FILE.py:make")),
        (BY_NAME, {"args": {"hidden": 5}}, ("'act'", "def make(): return Net(...)")),
        (CONFIG, {}, ("'config'", "def make(): return Net(NetConfig(...))", "FILE.py:make")),
        (BY_NAME, {"args": RIGHT, "config": {"act": "sin"}}, ("config.act", "args.act")),
        (CONFIG.replace("scale: float = 1.0", "scale: int = 1\n    def __post_init__(self): 1 / 0"),
         {"args": {**RIGHT, "scale": 1}}, ("NetConfig cannot be built", "ZeroDivisionError")),
    ],
)  # fmt: skip
def test_refusals_name_the_key_and_what_to_do(
    case: Case, code: str, beside: dict[str, object], texts: tuple[str, ...]
) -> None:
    found = case.save(code, beside).run()
    assert found.code == 1
    assert all(text in found.stderr.splitlines()[-1] for text in texts), found.stderr


@pytest.mark.parametrize("place", ["run", "."])
def test_arguments_in_lightnings_file_of_them(case: Case, place: str) -> None:
    file = case.folder / place / "hparams.yaml"
    case.save(BY_NAME, {})
    file.parent.mkdir(exist_ok=True)
    file.write_text("hidden: 5\nact: tanh\n")
    error = case.run().error
    assert "'hidden'" in error
    assert error.endswith(f"{file.resolve()} may hold their values.")
    found = case.run("--model-arg", "hidden=5", "--model-arg", "act=tanh")
    assert norms(found.stdout) == pytest.approx(expected_norms(), rel=1e-8), found.stderr


def test_nothing_of_a_machine_is_taken(case: Case) -> None:
    code = WITH_DEFAULTS.replace("p=0.5", "device='cpu', pretrained=False")
    code = code.replace("super()", "assert device == 'cpu' and not pretrained; super()")
    found = case.save(code, {"args": {**RIGHT, "device": "cuda", "pretrained": True}}).run()
    assert norms(found.stdout) == pytest.approx(expected_norms(), rel=1e-8), found.stderr


def test_arguments_decide_the_numbers_of_a_table(case: Case, tmp_path: Path) -> None:
    table = tmp_path / "ranks.csv"
    case.save(BY_NAME, {"config": RIGHT})
    assert case.run("-o", str(table)).code == 0
    (series,) = json.loads(Path(f"{table}.json").read_text())["series"]
    assert series["model_arguments"] == {"hidden": "5", "act": "'tanh'"}
    case.save(BY_NAME, {"config": {**RIGHT, "lr": 3}})  # not passed: nothing is computed again
    assert "2 of 2" in case.run("-o", str(table), "--model-arg", "act=tanh").stderr
    refused = case.run("-o", str(table), "--model-arg", "act=sin")
    assert refused.code == 1
    assert "model arguments was" in refused.stderr


def test_of_a_config_only_what_the_code_asks_for_counts(case: Case, tmp_path: Path) -> None:
    table = str(tmp_path / "ranks.csv")
    code = NO_CLASS.replace("self.act = config.act", "self.config = config").replace(
        "self.act)", "self.config.act)"
    )
    case.save(code, {"config": {**RIGHT, "lr": 1}})
    found = case.run("-o", table)
    assert found.code == 0, found.stderr
    assert "config=Values(hidden=5, act='tanh', lr=1)" in found.stderr
    (series,) = json.loads(Path(f"{table}.json").read_text())["series"]
    assert series["model_arguments"] == {"config": "Values(act='tanh', hidden=5)"}
    torch.save(
        {"state_dict": state(9), "config": {**RIGHT, "lr": 2}}, case.folder / "run" / "step_9.pt"
    )
    assert "resuming: 2 of 3" in case.run("-o", table).stderr
    other = {"state_dict": state(9), "config": {**RIGHT, "act": "sin"}}
    torch.save(other, case.folder / "run" / "step_11.pt")
    assert "act is 'tanh'" in case.run("-o", table).stderr


def test_inspect_and_python(case: Case) -> None:
    case.save(CONFIG, {"args": argparse.Namespace(**RIGHT)})
    run = case.folder / "run"
    found = invoke("inspect", str(run), "--model", f"{case.folder}/net.py:Net", *OPTIONS)
    assert "2 x 4" in found.stdout, found.stderr

    class Net(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, config.hidden), nn.Linear(config.hidden, 2)
            self.act = getattr(torch, config.act)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.act(self.a(x)))
            return out

    table = analyze(run, model=Net, data="normal:4", points=3, layers="b")
    assert list(table["jacobian_norm"]) == pytest.approx(expected_norms(), rel=1e-8)
