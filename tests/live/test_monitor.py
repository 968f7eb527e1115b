"""A monitor in a loop: rows, resuming, faults, and a training that is the same as without it."""

import copy
import json
import logging
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from localrank_cli import Monitor, local_rank
from localrank_cli.errors import (
    DataError,
    LocalrankError,
    ModelError,
    OutputError,
    SettingsError,
    UsageError,
)
from tests.helpers import mlp

DATA = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, Any] = {"device": "cpu", "points": 5, "quiet": True}


def test_the_rows_of_a_loop(tmp_path: Path) -> None:
    network: Any = mlp(4, 3, 2)
    expected = []
    with Monitor(tmp_path / "ranks.csv", DATA, every=2, atol=[0.01, 0.1], **OPTIONS) as monitor:
        for step in range(5):
            values = monitor(network, step)
            assert bool(values) == (step % 2 == 0)
            if values:
                frame = local_rank(
                    network, DATA, step=step, run=tmp_path.name, atol=[0.01, 0.1],
                    device="cpu", points=5,
                )  # fmt: skip
                expected.append(frame)
                assert set(values) == {
                    f"{name}/{layer}"
                    for name in ("local_rank", "local_rank_atol=0.1", "effective_rank")
                    for layer in "02"
                }
                assert values["local_rank/0"] == frame["local_rank"][0]
            with torch.no_grad():
                network[0].weight.mul_(0.5)
        wanted = pd.concat(expected, ignore_index=True)
        pd.testing.assert_frame_equal(monitor.table, wanted, check_exact=True)
    pd.testing.assert_frame_equal(monitor.table, wanted, check_exact=True)
    written = pd.read_csv(tmp_path / "ranks.csv", keep_default_na=False)
    assert written["local_rank"].tolist() == pytest.approx(wanted["local_rank"].tolist())
    manifest = json.loads((tmp_path / "ranks.csv.json").read_text())
    assert manifest["complete"]
    assert manifest["monitor"]["skipped_steps"] == []
    assert 0 < manifest["monitor"]["share_of_time"] <= 1


def test_the_values_of_intervals(tmp_path: Path) -> None:
    with Monitor(tmp_path / "ranks.csv", DATA, method="interval", **OPTIONS) as monitor:
        values = monitor(mlp(4, 3, 2), 0)
        for name in ("rank_low", "rank_high"):
            assert [values[f"{name}/{layer}"] for layer in "02"] == monitor.table[name].tolist()
    assert len(values) == 4


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [0, 1, 2, 5, 10, 20, 50, 100]),
        ({"every": "log"}, [0, 1, 2, 5, 10, 20, 50, 100]),
        ({"every": 40}, [0, 40, 80]),
        ({"steps": [3, 7]}, [3, 7]),
        ({"steps": range(98, 200)}, [98, 99, 100]),
    ],
)
def test_which_steps(tmp_path: Path, options: dict[str, Any], steps: list[int]) -> None:
    monitor = Monitor(tmp_path / "ranks.csv", DATA, **OPTIONS, **options)
    assert [step for step in range(101) if monitor.is_due(step)] == steps
    monitor.close()
    assert list(tmp_path.iterdir()) == []


class Noisy(nn.Module):
    """BatchNorm, dropout, and a draw from every generator in each forward pass of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8),
            nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.compiler.is_compiling():
            shift = random.random() + np.random.rand()  # the global one
            x = x + shift * 0.1
        out: Tensor = self.body(x)
        return out


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Draws in each item, in the workers."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        fixed = torch.Generator().manual_seed(index)
        return torch.randn(1, 4, 4, generator=fixed) + torch.randn(()), torch.tensor(index % 2)


def trained(
    how: str, monitor: Callable[[nn.Module, int], object] | None, n_workers: int = 0
) -> list[Any]:
    """Train, and return everything that a training leaves behind, to be compared bit by bit."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # the global one
    network: nn.Module = Noisy()
    trained_one: Any = network
    if how == "compiled":
        trained_one = torch.compile(network, backend="eager")
    if how == "parallel":
        trained_one = nn.DataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = DataLoader(Augmented(), batch_size=6, shuffle=True, num_workers=n_workers)
    n_accumulated = 2 if how == "accumulated" else 1
    amp: Any = torch.autocast("cpu", dtype=torch.bfloat16) if how == "amp" else nullcontext()
    losses, batches, step = [], 0, 0
    with amp if how == "amp" else nullcontext():
        for _ in range(2):
            for x, y in loader:
                loss = nn.functional.cross_entropy(trained_one(x), y)
                loss.backward()
                losses.append(loss.item())
                batches += 1
                if batches % n_accumulated == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
                    step += 1
                if monitor is not None:
                    monitor(trained_one, step)
    grads = [None if p.grad is None else p.grad.tolist() for p in network.parameters()]
    return [
        {key: (value.dtype, value.tolist()) for key, value in network.state_dict().items()},
        repr(optimizer.state_dict()), repr(scheduler.state_dict()), losses, grads,
        torch.get_rng_state().tolist(), random.random(), np.random.rand(),  # the global one
        [(m.training, len(m._forward_hooks)) for m in network.modules()],
    ]  # fmt: skip


# A plain one with workers is tested below.
@pytest.mark.parametrize(
    "how",
    [pytest.param("plain", marks=pytest.mark.long), "amp", "accumulated", "compiled", "parallel"],
)
def test_a_training_is_bit_identical_with_and_without_it(tmp_path: Path, how: str) -> None:
    torch.set_printoptions(precision=20)
    try:
        expected = trained(how, None)
        with Monitor(
            tmp_path / "ranks.csv", Augmented(), every=1, device="cpu", points=4, quiet=True,
            on_error="raise",
        ) as monitor:  # fmt: skip
            assert trained(how, monitor) == expected
    finally:
        torch.set_printoptions(profile="default")
    n_steps = 4 if how == "accumulated" else 8
    steps = sorted(set(monitor.table["step"]))
    assert steps == list(range(0 if how == "accumulated" else 1, n_steps + 1))


@pytest.mark.slow
def test_a_training_with_workers_is_bit_identical_too(tmp_path: Path) -> None:
    expected = trained("plain", None, n_workers=2)
    with Monitor(
        tmp_path / "ranks.csv", Augmented(), every=2, device="cpu", points=4, quiet=True,
        on_error="raise",
    ) as monitor:  # fmt: skip
        assert trained("plain", monitor, n_workers=2) == expected
    assert sorted(set(monitor.table["step"])) == [2, 4, 6, 8]


def shrunk(network: nn.Sequential, step: int) -> nn.Sequential:
    found = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(0.9**step)
    return found


def test_a_training_that_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, file = mlp(4, 3, 2), tmp_path / "ranks.csv"
    with Monitor(file, DATA, every=1, **OPTIONS) as monitor:
        for step in range(3):
            monitor(shrunk(network, step), step)
        first = monitor.table
    with Monitor(file, DATA, every=1, **OPTIONS) as monitor:
        assert monitor(shrunk(network, 1), 1) == {}  # measured before, with the same weights
        assert monitor(shrunk(network, 20), 2) != {}
        monitor(shrunk(network, 3), 3)
        second = monitor.table
    assert second["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    pd.testing.assert_frame_equal(second[second["step"] < 2], first[first["step"] < 2])
    other = local_rank(shrunk(network, 20), DATA, device="cpu", points=5)
    assert (
        second.loc[second["step"] == 2, "spectral_norm"].tolist() == other["spectral_norm"].tolist()
    )
    assert caplog.text.count("step 2 had different weights before; it is replaced") == 1


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_what_was_measured_survives_the_process(tmp_path: Path, end: str) -> None:
    file = tmp_path / "ranks.csv"
    monitor = Monitor(file, DATA, every=1, **OPTIONS)
    monitor(mlp(4, 3, 2), 0)
    assert "local_rank" in file.read_text()  # from the first step on
    monitor(mlp(4, 3, 2, seed=1), 1)
    if end == "killed":  # nothing more is written; the lock dies with the process
        assert monitor._table is not None
        monitor._table._stack.close()
        monitor._table = None
    monitor.close()
    with Monitor(file, DATA, every=1, **OPTIONS) as again:
        assert again(mlp(4, 3, 2, seed=1), 1) == {}
        assert again.table["step"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"atol": 0.5}, "tolerances was"),
        ({"seed": 4}, "seed was 0 and is now 4"),
        ({"dtype": "float32"}, "dtype was"),
        ({"wrt": "0"}, "wrt was"),
    ],
)
def test_other_settings_than_those_of_the_table(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    file = tmp_path / "ranks.csv"
    with Monitor(file, DATA, every=1, **OPTIONS) as monitor:
        monitor(mlp(4, 3, 2), 0)
    before = file.read_bytes()
    with pytest.raises(SettingsError, match=words):
        Monitor(file, DATA, every=1, **(OPTIONS | options))
    assert file.read_bytes() == before
    with Monitor(file, DATA, every=1, overwrite=True, **(OPTIONS | options)) as monitor:
        monitor(mlp(4, 3, 2), 0)


def test_other_data_or_layers_show_at_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ranks.csv"
    with Monitor(file, DATA, every=1, **OPTIONS) as monitor:
        monitor(mlp(4, 3, 2), 0)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (DATA + 1, {}, "the return value of the code of --data was"),
        (DATA, {"layers": "2"}, "layers was with 0"),
    ]
    for data, options, words in cases:
        caplog.clear()
        with Monitor(file, data, every=1, **OPTIONS, **options) as monitor:
            assert monitor(mlp(4, 3, 2), 1) == {}
            assert words in caplog.text
            assert monitor.table["status"].tolist() == ["ok", "ok", "failed"]


def test_two_monitors_of_one_table(tmp_path: Path) -> None:
    with Monitor(tmp_path / "ranks.csv", DATA, **OPTIONS), pytest.raises(OutputError):
        Monitor(tmp_path / "ranks.csv", DATA, **OPTIONS)


class WithoutForward(nn.Module):
    """As a LightningModule whose training step calls its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 2)


FAULTS: list[tuple[Any, dict[str, Any], str]] = [
    (nn.Linear(4, 2, device="meta"), {}, "meta device"),
    (mlp(4, 3, 2), {"layers": "nothing*"}, "nothing"),
    (mlp(5, 3, 2), {}, "4"),
    ("no network", {}, "expected a network"),
    (nn.Sequential(nn.ReLU()), {}, ""),
    (WithoutForward(), {}, "Define forward"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("network", "options", "words"), FAULTS)
def test_a_fault_is_one_line_and_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, network: Any, options: Any, words: str
) -> None:
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS, **options) as monitor:
        for step in range(3):
            assert monitor(network, step) == {}
        assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
        assert words in caplog.text
        assert "\n" not in caplog.messages[0]
        assert monitor.table["step"].tolist() == [0, 1, 2]
        assert set(monitor.table["status"]) != {"ok"}
        if not options:
            monitor(mlp(4, 3, 2), 3)
    assert ("there is no table" in caplog.text) == bool(options)
    if not options:  # the rows on the disk say why, too
        written = pd.read_csv(tmp_path / "ranks.csv")
        assert written["step"].tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("when", ["measured", "closed"])
def test_a_table_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor:
        assert monitor(mlp(4, 3, 2), 0) != {}
        table = monitor._table
        assert table is not None
        (tmp_path / "ranks.csv").unlink()
        (tmp_path / "ranks.csv").mkdir()
        if when == "measured":
            table._due = 0.0
            assert monitor(mlp(4, 3, 2), 1) != {}
            assert monitor.table["status"].tolist() == ["ok"] * 4
    assert "ranks.csv" in caplog.text
    (tmp_path / "ranks.csv").rmdir()
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor:
        assert set(monitor.table["step"]) >= {0}  # from the journal


def test_a_step_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given: list[Any] = [-1, "last", None, 1.5, torch.tensor(2), np.int64(3), 4.0]
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor:
        for step in given:
            monitor(mlp(4, 3, 2), step)
        assert monitor.table["step"].tolist() == [2, 2, 3, 3, 4, 4]
    assert caplog.text.count("expected a step from 0") == 4
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS):
        pass  # the journal can be read


def test_a_fault_stops_the_training_where_that_is_asked_for(tmp_path: Path) -> None:
    with (
        Monitor(tmp_path / "ranks.csv", DATA, every=1, on_error="raise", **OPTIONS) as monitor,
        pytest.raises(LocalrankError, match="meta"),
    ):
        monitor(nn.Linear(4, 2, device="meta"), 0)


class Doubled(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        return 2 * found if function is nn.functional.linear else found


class DoubledProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        products = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return 2 * found if function in products else found


def halved() -> Any:
    """As an activation that is compressed until the backward pass."""
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x / 2, lambda x: x)


@pytest.mark.parametrize("mode", [Doubled, DoubledProducts, halved])
def test_modes_of_the_training_change_no_number(tmp_path: Path, mode: Any) -> None:
    network: Any = mlp(4, 3, 2)
    expected = local_rank(network, DATA, device="cpu", points=5)
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor:
        with mode():
            before = nn.functional.linear(DATA, network[0].weight)
            monitor(network, 0)
            assert torch.equal(nn.functional.linear(DATA, network[0].weight), before)
            point = DATA[:1].clone().requires_grad_()
            point.pow(2).sum().backward()
        assert point.grad is not None
        # The mode is there again, and it alone.
        assert torch.equal(point.grad, point.detach() * (1 if mode is halved else 2))
        assert monitor.table["spectral_norm"].tolist() == expected["spectral_norm"].tolist()


def test_a_forked_process_leaves_the_table_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes that write to one journal would lose steps of either."""
    file = tmp_path / "ranks.csv"
    monitor = Monitor(file, DATA, every=1, **OPTIONS)
    monitor(mlp(4, 3, 2), 0)
    own, journal = monitor._pid, Path(f"{file}.journal").read_bytes()
    monitor._pid = -1  # as in a child
    assert monitor(mlp(4, 3, 2), 1) == {}
    monitor.close()
    assert "Create the monitor in the process that trains" in caplog.text
    assert Path(f"{file}.journal").read_bytes() == journal
    monitor._pid = own
    monitor(mlp(4, 3, 2), 2)
    monitor.close()
    assert pd.read_csv(file)["step"].tolist() == [0, 0, 2, 2]


def test_a_network_that_holds_a_module_of_python(tmp_path: Path) -> None:
    network: Any = mlp(4, 3, 2)
    network.library = math
    with Monitor(tmp_path / "ranks.csv", DATA, on_error="raise", **OPTIONS) as monitor:
        assert monitor(network, 0) != {}
    assert network.library is math


@pytest.mark.parametrize("name", ["a\x1b[2J", "b\u202e"])
def test_names_that_steer_a_terminal_are_escaped_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    class Raises(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(f"line\n{name}")

    with Monitor(tmp_path / "ranks.csv", DATA, **OPTIONS) as monitor:
        monitor(Raises(4, 2), 0)
    assert "is not measured" in caplog.messages[0]
    assert all(message.isprintable() for message in caplog.messages)


def test_a_network_in_place_of_the_table() -> None:
    network: Any = mlp(4, 3, 2)
    with pytest.raises(TypeError, match=r"monitor\(network, step\)"):
        Monitor(network, DATA)


@pytest.mark.parametrize(
    ("data", "options", "kind", "words"),
    [
        (None, {}, UsageError, "there are no data"),
        (DATA, {"every": 0}, UsageError, "every=0: expected a whole number of at least 1, or log"),
        (DATA, {"every": "often"}, UsageError, "or log"),
        (DATA, {"every": 2, "steps": [1]}, UsageError, "both choose"),
        (DATA, {"max_share": 2}, UsageError, "max_share=2"),
        (DATA, {"on_error": "skip"}, UsageError, "warn or raise"),
        (DATA, {"evry": 5}, TypeError, "did you mean 'every'"),
        (DATA, {"atol": 0}, UsageError, "atol"),
        (DATA, {"positions": "some"}, LocalrankError, "some"),
        ("nothing.npy", {}, DataError, "there is no such data file"),
        ("uniform:4x", {}, UsageError, "not a valid form"),
        (DATA / 0, {}, DataError, "point 0 has the value inf"),
        (DATA, {"device": "cuda:99"}, SettingsError, "there is no such GPU"),
    ],
)
def test_settings_are_checked_at_once(
    tmp_path: Path, data: Any, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        Monitor(tmp_path / "ranks.csv", data, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_has() -> None:
    with pytest.raises(UsageError, match="NUL"):
        Monitor("a\0.csv", DATA)


class Unsized(Dataset[Tensor]):
    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Tensor:
        return DATA[index]


def test_a_dataset_without_a_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its length cannot be determined"):
        Monitor(tmp_path / "ranks.csv", Unsized())


def test_a_share_of_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = OPTIONS | {"quiet": False}
    with Monitor(tmp_path / "ranks.csv", DATA, every=1, max_share=0.05, **options) as monitor:
        for step in range(10):  # nothing else takes time
            monitor(mlp(4, 3, 2, seed=step), step)
        assert monitor.table["step"].tolist() == [0, 0]
        monitor._cost._began -= 10_000  # a training of hours
        monitor(mlp(4, 3, 2), 10)
        assert monitor.table["step"].tolist() == [0, 0, 10, 10]
        assert monitor.share < 0.05
    manifest = json.loads((tmp_path / "ranks.csv.json").read_text())
    assert manifest["monitor"]["skipped_steps"] == list(range(1, 10))
    with Monitor(tmp_path / "ranks.csv", DATA, steps=[4], **OPTIONS) as monitor:
        monitor(mlp(4, 3, 2), 4)
    manifest = json.loads((tmp_path / "ranks.csv.json").read_text())
    assert manifest["monitor"]["skipped_steps"] == [1, 2, 3, *range(5, 10)]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "% of the training time; 9 steps skipped (max_share)" in printed.err


@pytest.mark.parametrize("kind", ["module", "state dict", "at the call"])
def test_averaged_weights(tmp_path: Path, kind: str) -> None:
    network: Any = mlp(4, 3, 2)
    average: Any = get_ema_multi_avg_fn(0.9)
    ema = AveragedModel(network, multi_avg_fn=average)
    ema.update_parameters(network)  # the first copies
    with torch.no_grad():
        network[0].weight.mul_(3)
    ema.update_parameters(network)
    given: Any = ema if kind != "state dict" else ema.module.state_dict()
    at_the_call = given if kind == "at the call" else None
    with Monitor(
        tmp_path / "ranks.csv", DATA, ema=None if at_the_call else given, **OPTIONS
    ) as monitor:
        monitor(network, 0, ema=at_the_call)
    expected = local_rank(ema.module, DATA, device="cpu", points=5)
    assert monitor.table["spectral_norm"].tolist() == expected["spectral_norm"].tolist()
    live = local_rank(network, DATA, device="cpu", points=5)
    assert monitor.table["spectral_norm"].tolist() != live["spectral_norm"].tolist()


def test_ctrl_c_is_the_users(tmp_path: Path) -> None:
    class Stops(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with (
        Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor,
        pytest.raises(KeyboardInterrupt),
    ):
        monitor(Stops(4, 2), 0)


def test_a_measurement_that_the_other_processes_would_not_wait_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS) as monitor,
        pytest.MonkeyPatch.context() as patch,
    ):
        group = type(monitor._group)
        for name, value in (("is_several", True), ("is_first", True), ("seconds", 1e-6)):
            patch.setattr(group, name, value)
        patch.setattr(group, "from_first", lambda _, value: value)
        assert monitor(mlp(4, 3, 2), 0) == {}
    assert "give the group a longer timeout" in caplog.text


def test_a_monitor_that_is_made_before_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning and torchrun run the whole script in each process."""
    first = Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS)
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = Monitor(tmp_path / "ranks.csv", DATA, every=1, **OPTIONS)  # does not want the table
    first.close()
    # Processes without a group are trainings of their own, as in an array of jobs.
    assert second(mlp(4, 3, 2), 0) != {}
    second.close()
    assert second.table["step"].tolist() == [0, 0]


def test_weights_that_zero_3_divides_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    for number, parameter in enumerate(network.parameters()):
        parameter.ds_id = number  # type: ignore[attr-defined]  # as DeepSpeed marks its parameters
    with (
        Monitor(tmp_path / "ranks.csv", "normal:4", on_error="raise", quiet=True) as monitor,
        pytest.raises(ModelError, match="ZeRO-3"),
    ):
        monitor(network, 0)
