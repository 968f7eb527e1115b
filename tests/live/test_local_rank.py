"""A network in memory: the same numbers as a file of it, and nothing of the user's is touched."""

import logging
import queue
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from localrank_cli import analyze, local_rank
from localrank_cli.errors import DataError, LocalrankError, ModelError, UsageError
from tests.helpers import mlp, renamed


class Rich(nn.Module):
    """Convolution, BatchNorm, dropout, and a result that each forward pass keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 4)
        self.register_buffer("scale", torch.full((4,), 1.5), persistent=False)
        self.scale: Tensor
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        found = self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1)
        self.kept = self.fc(found) * self.scale
        return self.kept


def rich() -> Rich:
    torch.manual_seed(3)
    network = Rich()
    network.fc.eval()
    network.conv.weight.requires_grad_(False)
    network(torch.randn(5, 1, 4, 4)).sum().backward()
    return network


POINTS = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(5))
OPTIONS: dict[str, Any] = {"device": "cpu", "points": 7}


def without_place(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=["run", "checkpoint"])


@pytest.mark.parametrize("options", [{}, {"atol": [0.1, 1], "rtol": "eps"}, {"wrt": "previous"}])
def test_the_numbers_of_a_saved_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    network = rich()
    torch.save(network.state_dict(), tmp_path / "step_8.pt")
    saved = analyze(tmp_path, model=Rich, data=POINTS, **OPTIONS, **options)
    ours = local_rank(network, POINTS, step=8, **OPTIONS, **options)
    pd.testing.assert_frame_equal(without_place(ours), without_place(saved), check_exact=True)
    state = local_rank(network.state_dict(), POINTS, step=8, model=Rich, **OPTIONS, **options)
    pd.testing.assert_frame_equal(state, ours, check_exact=True)


def wrappers() -> dict[str, Any]:
    network = rich()
    inside = rich()
    compiled: Any = torch.compile(inside.fc, backend="eager")
    inside.fc = compiled
    return {
        "compiled": torch.compile(network, backend="eager"),
        "parallel": nn.DataParallel(network),
        "compiled inside": inside,
    }


@pytest.mark.parametrize("kind", ["compiled", "parallel", "compiled inside"])
def test_wrapped_networks(kind: str) -> None:
    expected = local_rank(rich(), POINTS, **OPTIONS)
    found = local_rank(wrappers()[kind], POINTS, **OPTIONS)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_weights_in_bfloat16_are_measured_in_float64(tmp_path: Path) -> None:
    network = rich().bfloat16()
    torch.save(network.state_dict(), tmp_path / "step_0.pt")
    saved = analyze(tmp_path, model=Rich, data=POINTS, **OPTIONS)
    found = local_rank(network, POINTS, **OPTIONS)
    pd.testing.assert_frame_equal(without_place(found), without_place(saved), check_exact=True)
    assert set(found["method"]) == {"exact"}


def test_a_state_dict_alone_is_read_as_a_plain_mlp() -> None:
    network, data = mlp(4, 3, 2), torch.rand(8, 4)
    expected = local_rank(network, data, **OPTIONS)
    found = local_rank(renamed(network.state_dict(), "module."), data, **OPTIONS)
    assert found["local_rank"].tolist() == expected["local_rank"].tolist()
    whole: Any = {"model": network.state_dict(), "step": 9}
    in_a_dict = local_rank(whole, data, step=4, **OPTIONS)
    assert set(in_a_dict["step"]) == {4}
    one = local_rank(model=nn.Linear(4, 2), data=data, **OPTIONS)
    assert one["layer"].tolist() == ["model"]


def state_of_process() -> list[Any]:
    numpy: Any = np.random.get_state()
    return [
        torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2], random.getstate(),
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(), torch.get_default_device(),
        list(torch.nn.modules.module._global_forward_hooks.items()),
    ]  # fmt: skip


def state_of_network(network: nn.Module) -> list[Any]:
    found: list[Any] = []
    for name, module in network.named_modules():
        hooks = [dict(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        found += [name, id(module), module.training, hooks]
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        grad = tensor.grad
        found += [name, id(tensor), tensor.tolist(), tensor.dtype, tensor.requires_grad, id(grad)]
        found += [None if grad is None else grad.tolist(), tensor._version]
    return [*found, id(vars(network).get("kept"))]


@pytest.mark.cover(1)
@pytest.mark.parametrize("fault", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["", "autocast", "no_grad", "float64", "deterministic", "device"])
def test_everything_is_as_before(fault: type[BaseException] | None, where: str) -> None:
    network = rich()
    seen: list[Tensor] = []
    fires = [False]

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    def fail(x: Tensor) -> Tensor:
        if fault is not None and fires[0]:
            random.random(), np.random.rand(), torch.rand(1)  # the global one
            raise fault("stop")
        return x

    network.fc.register_forward_hook(record)
    network.fc.weight.register_hook(seen.append)
    anywhere = torch.nn.modules.module.register_module_forward_hook(record)
    network.drop.forward = fail  # type: ignore[assignment]  # a method is replaced
    fires[0] = True
    contexts: dict[str, Any] = {
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16), "no_grad": torch.no_grad(),
    }  # fmt: skip
    try:
        if where == "float64":
            torch.set_default_dtype(torch.float64)
        if where == "device":
            torch.set_default_device("meta")
        if where == "deterministic":
            torch.use_deterministic_algorithms(True, warn_only=True)
        with contexts.get(where, torch.enable_grad()):
            before = state_of_network(network), state_of_process()
            if fault is None:
                found = local_rank(network, POINTS, **OPTIONS)
            else:
                with pytest.raises((fault, ModelError)):
                    local_rank(network, POINTS, **OPTIONS)
            assert (state_of_network(network), state_of_process()) == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        anywhere.remove()
    assert seen == []
    if fault is None:
        plain = rich()
        plain.drop = nn.Identity()  # type: ignore[assignment]  # of another class
        expected = local_rank(plain, POINTS, **OPTIONS)
        assert found["local_rank"].tolist() == expected["local_rank"].tolist()


def test_within_inference_mode() -> None:
    with torch.inference_mode():
        network = rich_without_grad()
        found = local_rank(network, POINTS, **OPTIONS)
    expected = local_rank(rich_without_grad(), POINTS, **OPTIONS)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def rich_without_grad() -> Rich:
    torch.manual_seed(3)
    return Rich()


def test_hooks_of_the_network_itself_count(tmp_path: Path) -> None:
    """They are part of what a checkpoint of it computes; those from outside are not."""

    class Hooked(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*mlp(4, 6, 5, 3))
            self.mask: Tensor
            self[2].register_forward_pre_hook(lambda module, args: (args[0] * self.mask,))
            self.mask = torch.tensor([1.0, 1, 0, 0, 0, 0])

    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    data = torch.rand(8, 4)
    network = Hooked()
    network.register_forward_hook(lambda module, args, output: output * 0)
    torch.save(network.state_dict(), tmp_path / "step_0.pt")
    found = local_rank(network, data, **OPTIONS)
    saved = analyze(tmp_path, model=Hooked, data=data, **OPTIONS)
    pd.testing.assert_frame_equal(without_place(found), without_place(saved), check_exact=True)
    assert found.loc[found["layer"] == "2", "local_rank"].max() <= 2
    assert (
        local_rank(nn.Sequential(normed, nn.Linear(3, 2)), data, **OPTIONS)["rank_max"].max() == 3
    )


def test_a_hook_that_calls_a_part_of_the_network_calls_that_of_the_copy(tmp_path: Path) -> None:
    class Extra(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*mlp(4, 6, 3))
            self.norm = nn.BatchNorm1d(6)
            self.norm.running_mean = torch.linspace(-1, 1, 6)
            self[0].register_forward_hook(lambda module, args, output: self.norm(output))

        def forward(self, x: Tensor) -> Tensor:
            for part in list(self)[:3]:
                x = part(x)
            return x

    network = Extra()
    data = torch.rand(8, 4)
    torch.save(network.state_dict(), tmp_path / "step_0.pt")
    found = local_rank(network, data, **OPTIONS)
    saved = analyze(tmp_path, model=Extra, data=data, **OPTIONS)
    pd.testing.assert_frame_equal(without_place(found), without_place(saved), check_exact=True)
    assert network.norm.num_batches_tracked == 0


class Images(Dataset[tuple[Tensor, int]]):
    """Draws at random in each item, and counts what was taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(POINTS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.taken.append(index)
        torch.rand(1), random.random()
        return POINTS[index], index


@pytest.mark.parametrize(
    "kind", ["dataset", "loader", "tensors", "pairs", "dicts", "rows", "pairs loaded", "array"]
)
def test_data_in_any_form(kind: str) -> None:
    images = Images()
    loader = DataLoader(images, batch_size=2, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    images.taken.clear()
    given: Any = {
        "dataset": images, "loader": loader, "tensors": TensorDataset(POINTS, torch.arange(9)),
        "pairs": [(point, 1) for point in POINTS], "dicts": [{"x": point} for point in POINTS],
        "rows": list(POINTS), "pairs loaded": DataLoader([(p, 1) for p in POINTS]),  # type: ignore[arg-type]  # a list is a dataset
        "array": POINTS[:7].numpy(),
    }[kind]  # fmt: skip
    before = state_of_process()
    found = local_rank(rich(), given, **OPTIONS)
    torch.manual_seed(0)
    assert before[1:] == state_of_process()[1:]
    expected = local_rank(rich(), POINTS[:7], **OPTIONS)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert images.taken == (list(range(7)) if kind in {"dataset", "loader"} else [])
    assert len(list(iterator)) == 4


class Two(nn.Module):
    """A network of tokens and a mask, which it takes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.fc(self.embed(input_ids) * attention_mask[..., None])
        return out


@pytest.mark.parametrize("kind", ["tensors", "lists"])
def test_inputs_by_name(kind: str) -> None:
    items: list[dict[str, Any]] = [
        {"input_ids": torch.randint(0, 10, (5,)), "attention_mask": torch.ones(5, dtype=torch.long),
         "labels": torch.tensor(1), "text": "words"}
        for _ in range(6)
    ]  # fmt: skip

    if kind == "lists":  # as datasets of text hold tokens
        names = ("input_ids", "attention_mask")
        items = [item | {name: item[name].tolist() for name in names} for item in items]
        items = [item | {"words": ["a", "b"]} for item in items]

    class Tokens(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    found = local_rank(Two(), Tokens(), wrt="embed", device="cpu")
    assert found["n_points"].tolist() == [6]
    assert found["local_rank"].tolist() == [15.0]


class Endless(IterableDataset[Tensor]):
    """Can only be iterated over."""

    def __iter__(self) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("network", "data", "options", "kind", "words"),
    [
        (nn.Linear(4, 2, device="meta"), torch.rand(8, 4), {}, ModelError, "meta device"),
        (nn.LazyLinear(2), torch.rand(8, 4), {}, ModelError, "lazy"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"layers": "nothing*"}, LocalrankError, "nothing"),
        (mlp(4, 3, 2), None, {}, UsageError, "there are no data"),
        (mlp(4, 3, 2), torch.rand(0, 4), {}, DataError, ""),
        (mlp(4, 3, 2), torch.rand(8, 5), {}, ModelError, ""),
        (mlp(4, 3, 2), TensorDataset(torch.rand(0, 4)), {}, DataError, "holds no points"),
        (mlp(4, 3, 2), DataLoader(Endless()), {}, DataError, "iterated"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"pattern": "*"}, TypeError, "it is only for analyze"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"layer": "0"}, TypeError, "did you mean 'layers'"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"atol": 0}, UsageError, "atol"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"model": mlp}, TypeError, "already been given"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"model": "hf"}, TypeError, "already been given"),
        (mlp(4, 3, 2).state_dict(), torch.rand(8, 4), {"model": "hf"}, UsageError, "AutoModel"),
        ({}, torch.rand(8, 4), {}, LocalrankError, "the state dict"),
        ("run", torch.rand(8, 4), {}, TypeError, "analyze(path"),
        (mlp, torch.rand(8, 4), {}, TypeError, "Call it"),
        (None, torch.rand(8, 4), {}, TypeError, "got nothing"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"step": -1}, TypeError, "step=-1: expected a step"),
        (mlp(4, 3, 2), torch.rand(8, 4), {"step": "last"}, TypeError, "step='last'"),
    ],
)
def test_errors(
    network: Any, data: Any, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        local_rank(network, data, **({"device": "cpu"} | options))
    assert words in str(caught.value)


class Holds(nn.Module):
    """Holds what cannot be copied, and what a training left in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        self.lock, self.queue, self.log = threading.Lock(), queue.Queue[int](), logging.getLogger()
        self.items, self.seen = (x for x in range(3)), list[Tensor]()
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            out: Tensor = self.fc(x)
        self.seen.append(out)
        return out


def test_what_cannot_be_copied_is_shared() -> None:
    network, data = Holds(), torch.rand(8, 4)
    network(data)
    found = local_rank(network, data, **OPTIONS)
    assert found["local_rank"].tolist() == [3.0]
    assert len(network.seen) == 1
    assert next(network.items) == 0


def test_a_network_that_cannot_be_copied() -> None:
    class Refuses(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

    network, data = Refuses(4, 3), torch.rand(8, 4)
    with pytest.raises(ModelError, match=r"no copies.*local_rank\(network.state_dict\(\)"):
        local_rank(network, data, **OPTIONS)
    found = local_rank(network.state_dict(), data, model=lambda: Refuses(4, 3), **OPTIONS)
    assert found["local_rank"].tolist() == [3.0]


def test_no_file_of_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("localrank.toml").write_text("nonsense = 1\n")
    Path("adapter_config.json").write_text("{")
    Path("config.json").write_text("{")
    network, data = mlp(4, 3, 2), torch.rand(8, 4)
    ours = local_rank(network, data, **OPTIONS)
    state = local_rank(network.state_dict(), data, model=lambda: mlp(4, 3, 2, seed=1), **OPTIONS)
    assert state["local_rank"].tolist() == ours["local_rank"].tolist()
