from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from localrank_cli.errors import (
    DataError,
    LayerError,
    LocalrankError,
    MismatchError,
    ModelError,
    SettingsError,
    UsageError,
)
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.run.plan import Plan, make_plan
from tests.helpers import NET_CODE, mlp, net_weights, renamed, save_series, weights


def plan(
    *folders: Path, notes: list[str] | None = None, data: Any = "normal:4", **options: Any
) -> Plan:
    return make_plan(
        AnalyzeOptions(checkpoints=folders, data=data, device="cpu", **options),
        (notes if notes is not None else []).append,
    )


def test_a_plain_mlp(tmp_path: Path) -> None:
    notes: list[str] = []
    planned = plan(save_series(tmp_path / "run"), notes=notes)
    (series,) = planned.series
    assert series.run == "run"
    assert [checkpoint.step for checkpoint in series.checkpoints] == [0, 5, 10]
    assert planned.n_checkpoints == 3
    assert planned.extra_columns == ()
    assert [record.call.label for record in series.examination.records] == ["0", "2"]
    assert notes == ["no --model: read as a plain MLP 4-3-2 with relu between its layers"]


def test_stripped_prefixes_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    for step in (1, 2):
        state = renamed(weights(seed=step), "_orig_mod.module.")
        torch.save(state, tmp_path / f"step_{step}.pt")
    (series,) = plan(tmp_path, notes=notes).series
    assert [record.call.label for record in series.examination.records] == ["0", "2"]
    assert "stripped from the weights' names: prefix '_orig_mod.module.'" in notes


def test_a_mixed_series(tmp_path: Path) -> None:
    save_series(tmp_path, (1,))
    torch.save({"state_dict": renamed(weights(), "module."), "step": 2}, tmp_path / "last.ckpt")
    torch.save(weights(), tmp_path / "step_3.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "checkpoint-4").mkdir()
    save_file(weights(), tmp_path / "checkpoint-4/model.safetensors")
    half = {key: value.bfloat16() for key, value in weights().items()}
    torch.save(half, tmp_path / "step_5.pth")
    (series,) = plan(tmp_path).series
    assert [checkpoint.step for checkpoint in series.checkpoints] == [1, 2, 3, 4, 5]


def test_every_header_is_checked_before_any_work(tmp_path: Path) -> None:
    save_series(tmp_path, range(5))
    save_file(weights(4, 3, 7), tmp_path / "step_99.safetensors")
    with pytest.raises(MismatchError, match=r"step_99\.safetensors \(step 99\)"):
        plan(tmp_path)


def test_several_series(tmp_path: Path) -> None:
    notes: list[str] = []
    a, b = save_series(tmp_path / "b/run"), save_series(tmp_path / "a/run", widths=(4, 5, 2))
    (b / "localrank.toml").write_text("[columns]\nbeta = 2\n")
    (a / "localrank.toml").write_text("[columns]\nname = 'x'\n")
    planned = plan(a, b, notes=notes)
    assert [series.run for series in planned.series] == ["a/run", "b/run"]
    assert planned.extra_columns == ("beta", "name")
    assert notes[0].startswith("a/run: no --model: read as a plain MLP 4-5-2")
    assert planned.n_checkpoints == 6


def test_the_same_points_for_every_series(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((200, 4)))
    folders = [save_series(tmp_path / name) for name in "ab"]
    first, second = plan(*folders, data=str(tmp_path / "x.npy"), points=20).series
    assert first.points.indices == second.points.indices
    assert len(first.points.indices) == 20
    assert torch.equal(first.points.tensor, second.points.tensor)


def test_the_generator_is_left_as_found(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\ntorch.manual_seed(3)\n" + NET_CODE)
    torch.save(net_weights(), tmp_path / "step_1.pt")
    for model in (None, f"{tmp_path}/net.py:Net"):
        before = torch.get_rng_state()
        plan(save_series(tmp_path / "run") if model is None else tmp_path, model=model)
        assert torch.equal(torch.get_rng_state(), before)


class TestModel:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "net.py").write_text(NET_CODE)
        for step in (1, 2):
            torch.save(net_weights(step), tmp_path / f"step_{step}.pt")
        return tmp_path

    def test_a_file(self, folder: Path) -> None:
        (series,) = plan(folder, model=f"{folder}/net.py:Net").series
        assert [record.call.label for record in series.examination.records] == ["a", "b"]
        assert len(str(series.model_facts["model_sha256"])) == 64

    def test_a_package(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "pkg_of_plan").mkdir()
        (folder / "pkg_of_plan/nets.py").write_text(NET_CODE)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.path", [])  # the working directory is enough
        (series,) = plan(folder, model="pkg_of_plan.nets:Net").series
        assert [record.call.label for record in series.examination.records] == ["a", "b"]

    def test_arguments(self, folder: Path) -> None:
        with pytest.raises(MismatchError, match=r"a\.bias has shape \[3\], expected \[5\]"):
            plan(folder, model=f"{folder}/net.py:Net", model_arg=(("width", 5),))

    def test_other_layers(self, folder: Path) -> None:
        (series,) = plan(folder, model=f"{folder}/net.py:Net", layers=("b",)).series
        assert [record.call.label for record in series.examination.records] == ["b"]

    def test_a_class_from_python(self, tmp_path: Path) -> None:
        save_series(tmp_path)
        (series,) = plan(tmp_path, model=lambda: mlp(4, 3, 2)).series
        assert [record.call.label for record in series.examination.records] == ["0", "2"]

    def test_two_series_from_one_cached_module(self, tmp_path: Path) -> None:
        net = mlp(4, 3, 2)
        folders = [save_series(tmp_path / name) for name in "ab"]
        first, second = plan(*folders, model=lambda: net).series
        assert first.model is not second.model
        assert net.state_dict()["0.weight"].dtype == torch.float32

    def test_layers_with_the_same_neighbours(self, tmp_path: Path) -> None:
        """Two series with a net.py each, and beside it a module of the same name."""
        folders = []
        for name, width in (("a", 3), ("b", 5)):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "net.py").write_text("from neighbour_of_plan import Net\n")
            (folder / "neighbour_of_plan.py").write_text(
                NET_CODE.replace("width=3", f"width={width}")
            )
            (folder / "localrank.toml").write_text("model = 'net.py:Net'\n")
            net = {key: value for key, value in net_weights().items() if width == 3} or {
                "a.weight": torch.ones(5, 4),
                "a.bias": torch.ones(5),
                "b.weight": torch.ones(2, 5),
                "b.bias": torch.ones(2),
            }
            torch.save(net, folder / "step_1.pt")
            folders.append(folder)
        first, second = plan(*folders, trust_model=True).series
        assert [record.numel for record in first.examination.records] == [3, 2]
        assert [record.numel for record in second.examination.records] == [5, 2]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"data": "normal:5"}, ModelError, "5 values each; the first layer '0' takes 4"),
        ({"layers": ("fc*",)}, LayerError, "no layer matches 'fc*'"),
        ({"layers": ("fc1",)}, LayerError, "there is no layer 'fc1'"),
        ({"exclude": ("*",)}, LayerError, "no layer is left"),
        ({"wrt": "nope"}, LayerError, "nope"),
        ({"rtol": (1e-17,)}, SettingsError, "--rtol 1e-17 is below the rounding"),
        ({"rtol": (1e-8,), "dtype": "float32"}, SettingsError, "--rtol 1e-08 is below"),
        ({"data": torch.ones(70, 4, dtype=torch.int64)}, LayerError, "the data are integers"),
        ({"data": torch.full((70, 4), float("nan"))}, DataError, "point 0 has the value nan"),
        ({"data": torch.ones(10, 4), "points": 11}, DataError, "11 points were asked for"),
        ({"model": "nope.py:Net"}, LocalrankError, "there is no file nope.py"),
        ({"model": "nope_of_plan.x:Net"}, LocalrankError, "nope_of_plan.x cannot be imported"),
        ({"model": "Net"}, UsageError, "--model Net: not of the form"),
        ({"pattern": "x*"}, LocalrankError, "no checkpoint that matches --pattern 'x*'"),
    ],
)
def test_faults_are_reported_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[LocalrankError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(save_series(tmp_path), **options)
    assert message in caught.value.what
    assert "\n" not in str(caught.value)
    assert caught.value.advice


def test_integer_data_need_a_scale(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="integers") as caught:
        plan(save_series(tmp_path), data=torch.ones(70, 4, dtype=torch.uint8))
    assert "--data-scale" in caught.value.advice


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {}])
def test_rtol_eps_is_never_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    planned = plan(save_series(tmp_path), rtol=(None,), **options)
    assert planned.n_checkpoints == 3


def test_wrong_usage_is_seen_before_a_file_is_opened(tmp_path: Path) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"activation": "x"}, {"model": "x"}, {"data": "x"})
    for options in wrong:
        with pytest.raises(UsageError):
            plan(tmp_path / "nope", **{"data": "normal:4"} | options)


def test_data_in_the_series_is_no_checkpoint(tmp_path: Path) -> None:
    save_series(tmp_path)
    torch.save(torch.ones(70, 4), tmp_path / "inputs.pt")
    torch.save(torch.ones(70, 4), tmp_path / "other.pt")
    (tmp_path / "localrank.toml").write_text("data = 'inputs.pt'\n")
    (series,) = plan(tmp_path, data=str(tmp_path / "other.pt")).series
    assert len(series.checkpoints) == 3


def test_an_error_in_the_users_module_names_the_place(tmp_path: Path) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(4, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not\ntoday")

    torch.save(renamed(weights(), "body."), tmp_path / "step_1.pt")
    with pytest.raises(ModelError, match="RuntimeError: not today"):
        plan(tmp_path, model=Fails)
