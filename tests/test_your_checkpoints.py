"""docs/your_checkpoints.md: trainings of real libraries, the page's commands, and naive ranks."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp

from tests.cli.program import run_python
from tests.families.truth import load
from tests.naive import naive_batch_spectra
from tests.test_docs import ROOT, assert_same, at_a_terminal, examples, sections
from tests.warm import preload_libraries

PAGE = ROOT / "docs/your_checkpoints.md"
TRAININGS = ROOT / "tests/trainings"
NEEDS = {"gpt2": ("transformers", "accelerate"), "digits": ("lightning",)}

pytestmark = [pytest.mark.pages, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    preload_libraries()


def scripts_of(section: str) -> list[str]:
    return re.findall(r"\]\(\.\./tests/trainings/(\w+)\.py\)", sections(PAGE)[section])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder in which a script has run as `train.py`; each runs once."""
    folders: dict[str, Path] = {}

    def folder_of(section: str) -> Path:
        # The last section shares the script of the one before it.
        name, *modules = scripts_of(section) or ["lstm"]
        for package in NEEDS.get(name, ()):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: pip install {package}")
        if name not in folders:
            folder = folders[name] = tmp_path_factory.mktemp(name)
            (folder / "train.py").write_text((TRAININGS / f"{name}.py").read_text("utf-8"))
            for module in modules:
                text = (TRAININGS / f"{module}.py").read_text("utf-8")
                (folder / f"{module.removeprefix(f'{name}_')}.py").write_text(text)
            with contextlib.chdir(folder):
                run_python("train.py", env=os.environ | {"HF_HUB_OFFLINE": "1"})
        return folders[name]

    return folder_of


@contextmanager
def imported(folder: Path, name: str) -> Iterator[Any]:
    """A module of the user's, by its file."""
    spec = importlib.util.spec_from_file_location(f"user_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def without(prefix: str, state: Any) -> dict[str, Tensor]:
    assert all(key.startswith(prefix) for key in state)
    return {key[len(prefix) :]: value for key, value in state.items()}


# Each gives the network with the weights of a checkpoint, as the user's own code would.


def gpt2(folder: Path, checkpoint: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return load(transformers.GPT2LMHeadModel, folder / "output_dir" / checkpoint)


def of_lightning(folder: Path, checkpoint: str) -> nn.Module:
    path = folder / "lightning_logs/version_0/checkpoints" / checkpoint
    with imported(folder, "train") as module:
        found: nn.Module = module.LitDigits.load_from_checkpoint(path, weights_only=False)
        return found


def within_lightning(folder: Path, checkpoint: str) -> nn.Module:
    path = folder / "lightning_logs/version_0/checkpoints" / checkpoint
    loaded = torch.load(path, weights_only=False)
    with imported(folder, "train") as module:
        model: nn.Module = module.cnn(**loaded["hyper_parameters"])
    model.load_state_dict(without("model.", loaded["state_dict"]))
    return model


def nanogpt(folder: Path, checkpoint: str) -> nn.Module:
    loaded = torch.load(folder / "out" / checkpoint)
    with imported(folder, "model") as module:
        model: nn.Module = module.GPT(module.GPTConfig(**loaded["model_args"]))
    model.load_state_dict(without("_orig_mod.", loaded["model"]))
    return model


def of_dcp(folder: Path, checkpoint: str) -> nn.Module:
    with imported(folder, "train") as module:
        model: nn.Module = module.Net()
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=str(folder / "checkpoints" / checkpoint))  # type: ignore[attr-defined]  # torch does not export it
    model.load_state_dict(state["model"])
    return model


def lstm(folder: Path, checkpoint: str) -> nn.Module:
    with imported(folder, "train") as module:
        model: nn.Module = module.LSTMClassifier()
    state = torch.load(folder / "ddp" / checkpoint)["model_state_dict"]
    model.load_state_dict(without("module.", state))
    return model


def rows_of_tokens(folder: Path) -> Tensor:
    stream = (folder / "data/shakespeare_char/train.bin").read_bytes()
    numbers = [int.from_bytes(stream[i : i + 2], sys.byteorder) for i in range(0, 1600, 2)]
    return torch.tensor(numbers).reshape(100, 8)


def tensor_in(name: str) -> Callable[[Path], Tensor]:
    def read(folder: Path) -> Tensor:
        loaded = torch.load(folder / name)
        found: Tensor = loaded["images"] if isinstance(loaded, dict) else loaded
        return found

    return read


# Table -> the network of a checkpoint, all data, and the module whose output is varied.
TRUTHS: dict[str, tuple[Callable[[Path, str], nn.Module], Callable[[Path], Tensor], str]] = {
    "gpt2.csv": (gpt2, tensor_in("tokens.pt"), "transformer.wte"),
    "cnn.csv": (of_lightning, tensor_in("digits.pt"), ""),
    "net.csv": (within_lightning, tensor_in("digits.pt"), ""),
    "gpt.csv": (nanogpt, rows_of_tokens, "transformer.wte"),
    "dcp.csv": (of_dcp, tensor_in("inputs.pt"), ""),
    "mlp.csv": (of_dcp, tensor_in("inputs.pt"), ""),
    "lstm.csv": (lstm, tensor_in("sequences.pt"), ""),
    # The modules were saved together with the state dicts.
    "whole.csv": (lstm, tensor_in("sequences.pt"), ""),
}


def check_table(folder: Path, name: str) -> None:
    network, data, wrt = TRUTHS[name]
    frame = pd.read_csv(folder / name, dtype={"layer": str})
    manifest = pd.read_json(folder / f"{name}.json", typ="series")
    points = data(folder)[manifest["series"][0]["point_indices"]]
    assert set(frame["status"]) == {"ok"}
    assert set(frame["n_points"]) == {len(points)}
    for checkpoint, rows in frame.groupby("checkpoint"):
        model = network(folder, str(checkpoint))
        spectra = naive_batch_spectra(model, points, list(rows["layer"]), wrt)
        for row in rows.to_dict("records"):
            values = spectra[row["layer"]]
            tolerance = row["atol"] + row["rtol"] * values[:, :1]  # one of them is 0
            where = (name, checkpoint, row["layer"])
            # The table holds 9 digits: all of a count over 16 or 64 points.
            assert row["local_rank"] == (values > tolerance).sum(1).double().mean(), where
            largest = values[:, 0].mean().item()
            assert row["spectral_norm"] == pytest.approx(largest, rel=1e-8), where


@pytest.mark.parametrize("section", sections(PAGE))
def test_the_commands_reach_a_right_table(section: str, trained: Callable[[str], Path]) -> None:
    folder = trained(section)
    tables = []
    for example in examples(sections(PAGE)[section]):
        if example.language == "python":
            name = example.code.split("\n", 1)[0].removeprefix("# ")
            (folder / name).write_text(example.code + "\n", encoding="utf-8")
            continue
        status, seen = at_a_terminal(example.code, folder)
        fails = any("error: " in line for line in example.output)
        assert (status != 0) == fails, (example.code, seen)
        assert_same(seen, example)
        tables += re.findall(r"-o (\S+)", example.code)
    assert tables
    for table in tables:
        check_table(folder, table)


def test_every_section_and_table_is_known() -> None:
    listed = re.findall(r"\| \[(.*?)\]\(#", PAGE.read_text("utf-8").split("\n## ", 1)[0])
    assert listed == list(sections(PAGE))
    assert sorted(re.findall(r"-o (\S+)", PAGE.read_text("utf-8"))) == sorted(TRUTHS)
