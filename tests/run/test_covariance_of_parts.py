"""`--input-metric data` with positions and several sources, against numpy's products J L."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import SettingsError
from localrank_cli.jacobian.budget import Budget
from localrank_cli.layers.positions import Positions
from tests.cli.program import invoke
from tests.drawing import one_in
from tests.naive import Array, naive_jacobians, naive_outputs

N_DATA, POINTS, TOKENS, WIDTH = 40, 3, 5, 4
CODE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.up = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.mix(x).cumsum(1)
        return x + torch.tanh(self.up(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x
"""
LAYERS = ("embed", "blocks.0", "blocks.1")
# One of each way in which matrices are cut from a Jacobian; the rest at test-long.
CUTS = ("same", "last-each:3", "each:2", "all")
MORE = ("same:2", "first", "last", "last-all")
KINDS = (*CUTS, *(pytest.param(kind, marks=pytest.mark.long) for kind in MORE))


@cache
def network() -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(CODE, space)
    torch.manual_seed(0)
    return space["Net"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "net.py").write_text(CODE)
    save_file(network().state_dict(), folder / "step_0.safetensors")
    # Each position has another scale.
    scale = torch.linspace(0.5, 3, TOKENS)[:, None] * torch.tensor([1.0, 0.5, 0.1, 2.0])
    torch.save(scale * torch.randn(N_DATA, TOKENS, WIDTH), folder / "x.pt")
    return folder


def data(folder: Path) -> Array:
    x: torch.Tensor = torch.load(folder / "x.pt")
    values: Array = x.double().numpy()
    return values


@cache
def outputs(folder: Path, source: str, count: int = N_DATA) -> Array:
    """The source at all points, (points, tokens, features)."""
    x = data(folder)[:count]
    if not source:
        return x
    twin = network().double()
    rows = [naive_outputs(twin, torch.from_numpy(point), [source])[source] for point in x]
    stacked: Array = np.stack(rows)
    return stacked.reshape(-1, TOKENS, WIDTH)


def drawn_points(count: int) -> list[int]:
    """The points of seed 0."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:POINTS]
    return sorted(drawn.tolist())


def root(rows: Array) -> Array:
    """A factor of the covariance of rows."""
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    factor: Array = vectors * np.sqrt(np.clip(values, 0, None))
    return factor


def spectra(
    folder: Path, layer: str, source: str, kind: str, *, residual: bool = False,
    count: int = N_DATA,
) -> list[list[Array]]:  # fmt: skip
    """Singular values for each point and position."""
    indices = drawn_points(count)
    points = torch.from_numpy(data(folder)[indices])
    jacobians = naive_jacobians(network().double(), points, [layer], source)[layer]
    if residual:
        jacobians = jacobians - np.eye(jacobians.shape[1])
    values = outputs(folder, source, count)
    by_token = jacobians.reshape(-1, TOKENS, WIDTH, TOKENS, WIDTH)
    whole, positions = root(values.reshape(count, -1)), Positions.parse(kind)
    found = []
    for index, jacobian in zip(indices, by_token, strict=True):
        drawn = positions.of_points((TOKENS,), 0, [index])[0].tolist()
        if kind == "all":
            matrices = [jacobian.reshape(TOKENS * WIDTH, -1) @ whole]
        elif positions.kind in ("same", "first", "last"):
            matrices = [jacobian[i, :, i] @ root(values[:, i]) for i in drawn]
        elif positions.kind == "last-each":
            matrices = [jacobian[-1, :, j] @ root(values[:, j]) for j in drawn]
        else:
            matrices = [jacobian[i].reshape(WIDTH, -1) @ whole for i in drawn]
        found.append([np.linalg.svd(one, compute_uv=False) for one in matrices])
    return found


def run(folder: Path, *, count: int = N_DATA, **options: Any) -> pd.DataFrame:
    x = torch.load(folder / "x.pt")[:count]
    settings: dict[str, Any] = {
        "layers": "embed,blocks.?", "points": POINTS, "input_metric": "data", "device": "cpu",
        "atol": 0.5,
    }  # fmt: skip
    return analyze(folder, model=f"{folder / 'net.py'}:Net", data=x, **settings | options)


def check(frame: pd.DataFrame, expected: dict[tuple[str, str], list[list[Array]]]) -> None:
    found = {(row["layer"], row["wrt"]): row for row in frame.to_dict("records")}
    assert set(found) == set(expected)
    for name, points in expected.items():
        row = found[name]
        counts = [[int((sigma > 0.5).sum()) for sigma in one] for one in points]
        assert row["local_rank"] == pytest.approx(mean(map(mean, counts)), rel=1e-12), name
        assert row["rank_max"] == max(map(max, counts))
        norms = [mean(float(sigma[0]) for sigma in one) for one in points]
        assert row["spectral_norm"] == pytest.approx(mean(norms), rel=1e-7), name


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_and_source_has_its_own_covariance(folder: Path, kind: str) -> None:
    frame = run(folder, wrt="embed,previous", positions=kind)
    pairs = [("embed", ""), ("blocks.0", "embed"), ("blocks.1", "embed"), ("blocks.1", "blocks.0")]
    check(frame, {pair: spectra(folder, *pair, kind) for pair in pairs})
    assert (frame["n_cov"] == N_DATA).all()


@pytest.mark.parametrize("kind", one_in(2, (*CUTS, *MORE)))
def test_the_residual_part_too(folder: Path, kind: str) -> None:
    frame = run(folder, wrt="previous", positions=kind, residual=True)
    pairs = [("embed", ""), ("blocks.0", "embed"), ("blocks.1", "blocks.0")]
    check(frame, {pair: spectra(folder, *pair, kind, residual=True) for pair in pairs})


TIGHT = {
    ("same", True, N_DATA), ("last-each", False, 4), ("each", True, N_DATA), ("all", False, 4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "residual", "count"),
    [
        # Each kind once, with either residual part and count twice; all three at test-long.
        pytest.param(
            kind,
            residual,
            count,
            marks=() if (kind, residual, count) in TIGHT else pytest.mark.long,
        )
        for kind in ("same", "last-each", "each", "all")
        for residual in (False, True)
        for count in (4, N_DATA)
    ],
)
def test_little_memory_gives_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, residual: bool, count: int
) -> None:
    """Jacobians that are too large to hold are reduced in blocks."""
    options: dict[str, Any] = {"wrt": "previous", "positions": kind, "residual": residual}
    options |= {"count": count, "allow_small_cov": True}
    plenty = run(folder, **options)
    monkeypatch.setattr(Budget, "jacobians", property(lambda _: 100))
    monkeypatch.setattr(Budget, "block", lambda *_: 200)
    tight = run(folder, **options)
    for name in ("local_rank", "spectral_norm"):
        assert tight[name].tolist() == pytest.approx(plenty[name].tolist(), rel=1e-7)


@pytest.mark.cover(1)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["same", "last-each", "last", "all"])
def test_a_covariance_of_few_points(folder: Path, kind: str, residual: bool) -> None:
    frame = run(
        folder, wrt="embed", positions=kind, residual=residual, count=4, allow_small_cov=True
    )
    names = [layer for layer in LAYERS if residual is False or layer != "embed"]
    expected = {
        (layer, "embed"): spectra(folder, layer, "embed", kind, residual=residual, count=4)
        for layer in names
        if layer != "embed"
    }
    check(frame[frame["layer"] != "embed"], expected)
    assert (frame["rank_max"] <= 3).all()


@pytest.mark.parametrize("kind", one_in(2, ["same", "last-each", "each:2", "last-all"]))
def test_a_distribution(folder: Path, kind: str) -> None:
    options: dict[str, Any] = {"positions": kind, "points": POINTS, "atol": 0.1, "device": "cpu"}
    options |= {"model": f"{folder / 'net.py'}:Net", "data": "uniform:5x4"}
    scaled = analyze(folder, input_metric="data", **options)
    plain = analyze(folder, **options)
    assert scaled["spectral_norm"].tolist() == pytest.approx(
        (plain["spectral_norm"] * 12**-0.5).tolist(), rel=1e-9
    )


def test_pooled_at_one_position(folder: Path) -> None:
    frame = run(folder, wrt="blocks.0", layers="blocks.1", positions="last", pooled=True)
    points = torch.from_numpy(data(folder)[drawn_points(N_DATA)])
    jacobians = naive_jacobians(network().double(), points, ["blocks.1"], "blocks.0")["blocks.1"]
    last = jacobians.reshape(POINTS, TOKENS, WIDTH, TOKENS, WIDTH)[:, -1, :, -1]
    weighed = last @ root(outputs(folder, "blocks.0")[:, -1])
    sigma = np.linalg.svd(weighed.mean(axis=0), compute_uv=False)
    assert frame["pooled_rank"].item() == (sigma > 0.5).sum()


def test_shards_have_the_covariances_of_the_whole_file(folder: Path) -> None:
    words = [
        "analyze", str(folder), "--model", f"{folder / 'net.py'}:Net", "--data",
        str(folder / "x.pt"), "--positions", "same:2", "--wrt", "embed,previous", "--layers",
        "blocks.?", "--input-metric", "data", "--points", "5", "--device", "cpu",
    ]  # fmt: skip
    alone = invoke(*words)
    assert alone.code == 0, alone.stderr
    for index in range(3):
        shard = invoke(*words, "--shard", f"{index}/3", "-o", str(folder / "shards"))
        assert shard.code == 0, shard.stderr
    merged = invoke("merge", str(folder / "shards"), "-o", str(folder / "merged.csv"))
    assert merged.code == 0, merged.stderr
    assert (folder / "merged.csv").read_text() == alone.stdout


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"positions": "same", "count": 4}, "4 points span at most 3 of the 4 directions of a pos"),
        ({"count": 20}, "20 points span at most 19 of the 20 directions of the varied tensor"),
        ({"positions": "same", "pooled": True}, "Jacobians in several metrics have no mean"),
        ({"positions": "last-each", "pooled": True}, "choose --positions last or first"),
    ],
)
def test_refused(folder: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingsError, match=what.replace("(", r"\(")):
        run(folder, **{"wrt": "embed", **options})


def test_a_distribution_has_no_covariance_of_a_module(folder: Path) -> None:
    sources: Sequence[str] = ("previous", "embed")
    for source in sources:
        with pytest.raises(SettingsError, match="the points come from a distribution"):
            analyze(
                folder, model=f"{folder / 'net.py'}:Net", data="normal:5x4", wrt=source,
                input_metric="data", positions="last", device="cpu",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("positions", "what"),
    [
        # (2 + 2) factors of 8 * 512 entries by 600 points, of 8 bytes each.
        ("all", "covariances of 2 sources with up to 4096 entries need 75 MiB, but the budget"),
        ("same", "of 2 sources, at 8 positions each, with up to 512 entries need 64 MiB"),
    ],
)
def test_covariances_too_large_are_refused_with_their_bytes(
    tmp_path: Path, positions: str, what: str
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "def Net():\n    return nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 2))\n"
    )
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 2))
    save_file(model.state_dict(), tmp_path / "step_0.safetensors")
    options: dict[str, Any] = {
        "model": f"{tmp_path / 'net.py'}:Net", "data": torch.randn(600, 8, 512), "points": 1,
        "wrt": "previous", "input_metric": "data", "allow_small_cov": True, "memory": "16MiB",
        "device": "cpu",
    }  # fmt: skip
    with pytest.raises(SettingsError, match=what) as error:
        analyze(tmp_path, positions=positions, **options)
    assert error.value.advice.endswith("or fewer positions, as with --positions last.")
    assert (analyze(tmp_path, positions="last", **options)["status"] == "ok").all()
