import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import localrank_cli
from localrank_cli import analyze
from localrank_cli.errors import LocalrankError, MismatchError, UsageError
from localrank_cli.results.columns import COLUMNS, header
from tests.cli.program import invoke
from tests.helpers import NET_CODE, mlp, net_weights, save_series

POINTS: dict[str, Any] = {"data": "normal:4", "points": 7, "device": "cpu"}


def frame(*args: Any, **options: Any) -> pd.DataFrame:
    return analyze(*args, **(POINTS | options))


def test_what_the_package_offers() -> None:
    assert localrank_cli.__all__ == [
        "Monitor", "__version__", "analyze", "inspect", "local_rank", "merge", "plot",
        "rethreshold",
    ]  # fmt: skip
    for name in localrank_cli.__all__:
        assert getattr(localrank_cli, name) is not None
    assert localrank_cli.__version__.count(".") == 2


def test_the_same_as_the_command_line(tmp_path: Path) -> None:
    for name in "ba":
        save_series(tmp_path / name)
    (tmp_path / "b/localrank.toml").write_text("[columns]\nbeta = 2.5\n")
    found = frame([tmp_path / "a", tmp_path / "b"], atol=[0.01, 0.5], rtol=["eps", 0.1])
    words = "--data normal:4 --points 7 --device cpu --atol .01 --atol .5 --rtol eps --rtol .1"
    outcome = invoke("analyze", str(tmp_path / "a"), str(tmp_path / "b"), *words.split())
    assert outcome.code == 0
    read = pd.read_csv(io.StringIO(outcome.stdout), keep_default_na=False)
    assert list(found.columns) == list(read.columns) == list(header(("beta",)))
    assert len(found) == len(read) == 2 * 3 * 2 * 4
    for name, kind in COLUMNS.items():
        if kind == "str":
            assert found[name].tolist() == read[name].astype(str).tolist(), name
        else:
            ours, theirs = found[name].astype(float), pd.to_numeric(read[name])
            assert np.allclose(ours, theirs, rtol=5.01e-9, atol=0), name
    assert found.loc[found["run"] == "b", "beta"].eq(2.5).all()
    assert found.loc[found["run"] == "a", "beta"].isna().all()


def test_types_and_order(tmp_path: Path) -> None:
    found = frame(str(save_series(tmp_path, (10, 9, 100))), atol=(1, 0.5))
    assert str(found["step"].dtype) == "int64"
    assert str(found["rank_min"].dtype) == "Int64"
    assert str(found["local_rank"].dtype) == "float64"
    assert found["step"].drop_duplicates().tolist() == [9, 10, 100]
    assert found["tolerance"].head(2).tolist() == ["atol=1", "atol=0.5"]


def test_path_forms(tmp_path: Path) -> None:
    save_series(tmp_path)
    by_folder = frame(tmp_path)
    names = [f"step_{step}.safetensors" for step in (0, 5, 10)]
    by_files = frame(str(tmp_path / name) for name in names)
    pd.testing.assert_frame_equal(by_folder, by_files)


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.float64(0.5), [0.5], "0.5", (0.5,)])
def test_numbers_in_any_form(tmp_path: Path, number: Any) -> None:
    found = frame(save_series(tmp_path, (1,)), atol=number, rtol=number)
    assert found["tolerance"].head(2).tolist() == ["atol=0.5", "rtol=0.5"]


def test_rtol_eps(tmp_path: Path) -> None:
    found = frame(save_series(tmp_path, (1,)), rtol="eps")
    assert found["tolerance"].tolist() == ["rtol=eps"] * 2


@pytest.mark.parametrize("kind", ["tensor", "array", "path", "integers"])
def test_data_in_any_form(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).integers(0, 9, (9, 4))
    np.save(tmp_path / "x.npy", array.astype(float))
    data: Any = {
        "tensor": torch.from_numpy(array).double().requires_grad_(),
        "array": array.astype(np.float32),
        "path": tmp_path / "x.npy",
        "integers": array,
    }[kind]
    save_series(tmp_path, (1,))
    found = frame(tmp_path, data=data, **({"data_scale": 1} if kind == "integers" else {}))
    expected = frame(tmp_path, data=str(tmp_path / "x.npy"))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("layers", ["2", ["2"], "!0", ["*", "!0"], "2,!0"])
def test_layers_in_any_form(tmp_path: Path, layers: Any) -> None:
    found = frame(save_series(tmp_path, (1,)), layers=layers)
    assert found["layer"].tolist() == ["2"]
    assert frame(tmp_path, exclude="2")["layer"].tolist() == ["0"]


def test_a_model_from_python(tmp_path: Path) -> None:
    torch.save(net_weights(), tmp_path / "step_1.pt")
    (tmp_path / "net.py").write_text(NET_CODE)

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(torch.relu(self.a(x)))
            return out

    ours = frame(tmp_path, model=Net, model_arg={"width": 3})
    theirs = frame(tmp_path, model=f"{tmp_path}/net.py:Net")
    pd.testing.assert_frame_equal(ours, theirs)


def test_everything_is_left_as_found(tmp_path: Path) -> None:
    net = mlp(4, 3, 2)
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    data = torch.rand(70, 4)
    copy = data.clone()
    state, default = torch.get_rng_state(), torch.get_default_dtype()
    frame(save_series(tmp_path), model=lambda: net, data=data)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])
    assert torch.equal(data, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == default


def test_notes_go_to_the_logger_and_nothing_is_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="localrank"):
        frame(save_series(tmp_path))
    assert "no --model: read as a plain MLP 4-3-2" in caplog.text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"atol": 0}, UsageError),
        ({"rtol": "x"}, UsageError),
        ({"data": "x.csv"}, UsageError),
        ({"data": None}, LocalrankError),
        ({"model": lambda: mlp(4, 5, 2)}, MismatchError),
        ({"device": "cuda:99"}, LocalrankError),
        ({"outptut": "x.csv"}, TypeError),
        ({"output": "x.csv"}, TypeError),
        ({"model_args": ()}, TypeError),
    ],
)
def test_errors(tmp_path: Path, options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        frame(save_series(tmp_path), **options)


def test_no_checkpoints() -> None:
    with pytest.raises(UsageError, match="no checkpoints"):
        frame([])


class Other:
    """An object of no known kind."""


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        (
            nn.Linear(2, 2),
            ["torch.save(model.state_dict(), 'run/step_0.pt')", "local_rank(model, data)"],
        ),
        (nn.Sequential(nn.Linear(2, 2)), ["torch.save(model.state_dict()"]),
        (nn.Linear(2, 2).state_dict(), ["torch.save(state_dict,"]),
        ([nn.Linear(2, 2)], ["torch.save(model.state_dict()"]),
        (
            [nn.Linear(2, 2).state_dict()] * 2,
            ["for step, one in enumerate(series): torch.save(one, f'run/step_{step}.pt')"],
        ),
        ({0: nn.Linear(2, 2).state_dict(), 50: {}}, ["one in series.items(): torch.save(one,"]),
        ([nn.Linear(2, 2)] * 2, ["torch.save(one.state_dict(), f'run/step_{step}.pt')"]),
        ({"model": {}, "optimizer": {}}, ["torch.save(state_dict, 'run/step_0.pt')"]),
        (torch.rand(3, 3), ["expected a path", "Pass the folder"]),
        (np.zeros(3), ["expected a path", "Pass the folder"]),
        (3, ["expected a path", "Pass the folder"]),
        (Other(), ["expected a path", "Pass the folder"]),
        (None, ["expected a path"]),
    ],
)
def test_no_path(checkpoints: Any, words: list[str]) -> None:
    with pytest.raises(TypeError) as caught:
        frame(checkpoints)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 2}, ["layers=2: expected a string", "Names are strings: '2'."]),
        ({"layers": [0, 2]}, ["Names are strings: ['0', '2']."]),
        ({"exclude": 2}, ["exclude=2", "'2'"]),
        ({"layers": nn.Linear(2, 2)}, ["as named_modules() does"]),
        ({"layers": [mlp(4, 3, 2)[0]]}, ["as named_modules() does"]),
        ({"wrt": nn.Linear(2, 2)}, ["wrt=", "expected a string", "named_modules()"]),
        ({"activation": nn.ReLU()}, ["activation=ReLU()", "in quotes"]),
        ({"model": mlp(40, 30, 20)}, ["model=<Sequential>", "model=lambda: network"]),
        ({"model": {"w": torch.rand(9)}}, ["Pass the class of the network"]),
        ({"model": Path("net.py")}, ["'file.py:name'"]),
        ({"data": {"x": "digits"}}, ["Pass a dict of arrays"]),
        ({"data": [torch.rand(4)] * 9}, ["torch.stack(data)"]),
        ({"data": [(torch.rand(4), 1)] * 9}, ["torch.stack([inputs for inputs, *_ in data])"]),
        ({"data": (torch.rand(9, 4), torch.rand(9))}, ["pass the inputs alone: data[0]"]),
        ({"data": pd.DataFrame({"a": [1.0]})}, ["data.to_numpy()"]),
        ({"data": TensorDataset(torch.rand(9, 4))}, ["for inputs, *_ in data])"]),
        ({"data": DataLoader(TensorDataset(torch.rand(9, 4)))}, ["for inputs, *_ in loader])"]),
        ({"data": Other()}, ["points on its first axis"]),
        ({"model_arg": [1]}, ["expected a table", 'such as {"width": 100}']),
        ({"points": True}, ["points=True: expected a whole number"]),
    ],
)
def test_a_value_of_another_type(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as caught:
        frame(save_series(tmp_path, (1,)), **options)
    assert isinstance(caught.value, UsageError)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_the_advice_on_a_module_works(tmp_path: Path) -> None:
    network = mlp(4, 3, 2)
    found = frame(save_series(tmp_path, (1,)), model=lambda: network)
    assert found["local_rank"].tolist() == frame(tmp_path)["local_rank"].tolist()


def test_options_by_position(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="give everything else by name"):
        analyze(str(tmp_path), "points.npy")
    with pytest.raises(TypeError, match=r"local_rank\(network, data\)"):
        analyze(mlp(4, 3), torch.rand(5, 4))  # type: ignore[arg-type]  # the wrong type is the point


@pytest.mark.parametrize("dtype", [torch.float32, "float32", np.float32, np.dtype("float32")])
def test_dtypes_and_devices_of_torch(tmp_path: Path, dtype: Any) -> None:
    found = frame(save_series(tmp_path, (1,)), dtype=dtype, device=torch.device("cpu"))
    assert set(found["dtype"]) == {"float32"}
