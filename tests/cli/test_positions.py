"""Positions, several sources and J - 1 at the command line: the whole life of such a table."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from localrank_cli import analyze
from localrank_cli.errors import LocalrankError
from localrank_cli.layers.positions import Positions
from tests.cli.program import Outcome, invoke, rows
from tests.naive import naive_jacobians

POINTS, TOKENS, WIDTH = 4, 6, 4
CODE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.up = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + (self.q(x) @ self.k(x).mT).tril() @ x
        return x + torch.tanh(self.up(x))

class Net(nn.Module):
    def __init__(self, embed=None):
        super().__init__()
        self.embed = nn.Linear(3, 4) if embed is None else embed
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 9)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.first, self.unembed = self.blocks[0], self.head

class Square(Net):
    def forward(self, x):
        return self.blocks[0](super().forward(x @ x.mT @ x)[..., :4] + self.embed.bias)

def Tokens():
    return Net(nn.Embedding(11, 4))
"""
PAIRS = ("--layers", "blocks.?,blocks.*.q,head", "--wrt", "embed,previous", "--positions", "same:3")


def network(name: str = "Net") -> torch.nn.Module:
    space: dict[str, type[torch.nn.Module]] = {}
    exec(CODE, space)
    return space[name]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("positions")
    (folder / "net.py").write_text(CODE)
    for name, run in (("Net", "run"), ("Tokens", "tokens")):
        (folder / run).mkdir()
        for step in (0, 10):
            torch.manual_seed(step)
            state = {key: 1.5 * value for key, value in network(name).state_dict().items()}
            save_file(state, folder / run / f"step_{step}.safetensors")
    torch.manual_seed(1)
    torch.save({"x": torch.randn(12, TOKENS, 3), "y": torch.arange(12) % 9}, folder / "points.pt")
    torch.save(torch.randint(0, 11, (12, TOKENS)), folder / "tokens.pt")
    return folder


def words_of(folder: Path, *words: str, name: str = "Net") -> list[str]:
    run, data = ("tokens", "tokens.pt") if name == "Tokens" else ("run", "points.pt")
    key = () if name == "Tokens" else ("--data-key", "x")
    return [
        "analyze", str(folder / run), "--model", f"{folder / 'net.py'}:{name}", "--device", "cpu",
        "--data", str(folder / data), *key, "--points", str(POINTS), *words,
    ]  # fmt: skip


def run(folder: Path, *words: str, name: str = "Net") -> Outcome:
    return invoke(*words_of(folder, *words, name=name))


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    """A table whose layers have several sources, with its singular values."""
    target = folder / "pairs.csv"
    outcome = run(folder, *PAIRS, "-o", str(target), "--spectra", str(folder / "spectra"))
    assert outcome.code == 0, outcome.stderr
    return target


def sources(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows(text):
        if row["step"] == "0":
            found.setdefault(row["layer"], []).append(row["wrt"])
    return found


def test_previous_is_the_nearest_chosen_layer_on_which_a_layer_depends(table: Path) -> None:
    assert sources(table.read_text()) == {
        "blocks.0.q": ["", "embed"],
        "blocks.0": ["", "embed"],  # its own parts are inside it
        "blocks.1.q": ["embed", "blocks.0"],
        "blocks.1": ["embed", "blocks.0"],
        "blocks.2.q": ["embed", "blocks.1"],
        "blocks.2": ["embed", "blocks.1"],
        "head": ["embed", "blocks.2"],
    }


def test_parallel_branches_have_the_layer_before_them(folder: Path) -> None:
    found = sources(run(folder, "--layers", "blocks.?.?", "--wrt", "previous").stdout)
    assert (found["blocks.0.q"], found["blocks.0.k"]) == ([""], [""])


def test_of_tokens_the_first_layer_has_what_feeds_it(folder: Path) -> None:
    words = ("--wrt", "previous", "--positions", "last")
    found = sources(run(folder, "--layers", "blocks.?", *words, name="Tokens").stdout)
    assert found == {
        "blocks.0": ["embed"], "blocks.1": ["blocks.0"], "blocks.2": ["blocks.1"]
    }  # fmt: skip
    every = run(folder, "--layers", "*", *words, name="Tokens")
    assert every.code == 0, every.stderr
    assert sources(every.stdout)["blocks.0.q"] == ["embed"]
    assert "left out, do not depend on any source of --wrt previous: embed" in every.stderr


def test_numbers_and_standard_errors_are_those_of_a_direct_computation(table: Path) -> None:
    """Means over positions first, then over points, whose spread is the error."""
    state = {}
    torch.manual_seed(10)
    for key, value in network().state_dict().items():
        state[key] = 1.5 * value
    model = network()
    model.load_state_dict(state)
    model = model.double()
    data = torch.load(table.parent / "points.pt")["x"].double()
    (row,) = (
        row
        for row in rows(table.read_text())
        if (row["step"], row["layer"], row["wrt"]) == ("10", "blocks.2", "blocks.1")
    )
    indices = _indices(table)
    drawn = Positions.parse("same:3").of_points((TOKENS,), 0, indices)
    values = []
    for index, places in zip(indices, drawn.tolist(), strict=True):
        whole = naive_jacobians(model, data[index : index + 1], ["blocks.2"], "blocks.1")
        parts = whole["blocks.2"][0].reshape(TOKENS, WIDTH, TOKENS, WIDTH)
        values.append([np.linalg.svd(parts[i, :, i], compute_uv=False) for i in places])
    norms = [mean(float(np.linalg.norm(one)) for one in point) for point in values]
    assert float(row["jacobian_norm"]) == pytest.approx(mean(norms), rel=1e-6)
    assert float(row["jacobian_norm_se"]) == pytest.approx(stdev(norms) / POINTS**0.5, rel=1e-6)
    counts = [[int((one > 0.01).sum()) for one in point] for point in values]
    assert float(row["local_rank"]) == pytest.approx(mean(map(mean, counts)), rel=1e-6)
    assert row["rank_min"] == str(min(map(min, counts)))
    assert row["rank_max"] == str(max(map(max, counts)))
    assert (row["positions"], row["n_positions"], row["jacobian"]) == ("same:3", "3", "J")


def _indices(table: Path) -> list[int]:
    (series,) = json.loads(Path(f"{table}.json").read_text())["series"]
    found: list[int] = series["point_indices"]
    return found


def test_layers_with_several_sources_are_rows_of_their_own(folder: Path, table: Path) -> None:
    again = run(folder, *PAIRS, "-o", str(table))
    assert "resuming: 2 of 2 checkpoints are already finished" in again.stderr
    shown = invoke("show", str(table)).stdout
    for name in ("head from embed", "head from blocks.2", "blocks.0 from the input"):
        assert name in shown


def test_counting_again_gives_the_same_table(table: Path) -> None:
    outcome = invoke("rethreshold", str(table.parent / "spectra"), "--atol", "0.01")
    assert rows(outcome.stdout) == rows(table.read_text())


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_a_merge_of_shards_is_the_single_run(folder: Path, count: int) -> None:
    # Not that of `table`: values for --spectra are solved for apart, and may round otherwise.
    single = folder / f"single{count}.csv"
    assert run(folder, *PAIRS, "-o", str(single)).code == 0
    parts = folder / f"shards{count}"
    for index in range(count):
        outcome = run(folder, *PAIRS, "--shard", f"{index}/{count}", "-o", str(parts))
        assert outcome.code == 0, outcome.stderr
    target = folder / f"merged{count}.csv"
    assert invoke("merge", str(parts), "-o", str(target)).code == 0
    assert target.read_bytes() == single.read_bytes()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--positions", "same:2"), "positions was same:3 and is now same:2"),
        pytest.param(
            ("--positions", "last"),
            "positions was same:3 and is now last",
            marks=pytest.mark.long,
        ),
        (("--wrt", "previous"), "wrt was embed,previous and is now previous"),
        (("--feature-axis", "blocks.*=2"), "feature axis was not set and is now ['blocks.*=2']"),
        (("--exclude", "head"), "layers was with head from embed (9), head from blocks.2 (9)"),
    ],
)
def test_other_parts_are_refused_by_name(
    folder: Path, table: Path, words: Sequence[str], named: str
) -> None:
    outcome = run(folder, *PAIRS, *words, "-o", str(table))
    assert outcome.code == 1
    assert named in outcome.error


@pytest.mark.parametrize("kind", ["ranks", "heatmap", "depth", "tolerance", "spectrum"])
def test_every_figure_keeps_the_sources_apart(folder: Path, table: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    spectra = ("--spectra", str(folder / "spectra")) if kind in {"tolerance", "spectrum"} else ()
    target = folder / f"{kind}.svg"
    layers = ("--layers", "head*", "-o", str(target))
    outcome = invoke("plot", str(table), "--kind", kind, *spectra, *layers)
    assert outcome.code == 0, outcome.stderr
    assert "head from blocks.2" in target.read_text()


def test_a_page_and_its_singular_values(folder: Path, table: Path) -> None:
    target = folder / "page.html"
    spectra = ("--spectra", str(folder / "spectra"))
    assert invoke("report", str(table), *spectra, "-o", str(target)).code == 0
    assert "head from blocks.2" in target.read_text()


def test_runs_at_other_positions_are_not_averaged(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tables = []
    for index, words in enumerate((("last",), ("same",), ("last", "--residual"))):
        target = tmp_path / f"{index}.csv"
        choice = ("--layers", "blocks.1", "--wrt", "embed", "--last", "1", "--positions", *words)
        assert run(folder, *choice, "-o", str(target)).code == 0
        tables.append(str(target))
    outcome = invoke("plot", *tables, "-o", str(tmp_path / "ranks.png"))
    assert "positions (last, same), jacobian (J, J-1)" in outcome.stderr


def test_information_and_labels_with_pairs(folder: Path) -> None:
    words = ("--information", "--labels-key", "y")
    outcome = run(folder, *PAIRS, *words)
    assert outcome.code == 0, outcome.stderr
    by_layer: dict[tuple[str, str], set[str]] = {}
    for row in rows(outcome.stdout):
        by_layer.setdefault((row["step"], row["layer"]), set()).add(
            row["information_xt_upper_nats"]
        )
    # It is of the layer's output, whatever the source is.
    assert all(len(values) == 1 for values in by_layer.values())
    assert len({next(iter(values)) for values in by_layer.values()}) > 1


def test_localrank_toml_and_python_give_the_same(folder: Path, tmp_path: Path) -> None:
    residual = ("--layers", "blocks.[01]", "--wrt", "embed,previous", "--positions", "same:4")
    expected = run(folder, *residual, "--residual", "--feature-axis", "-1")
    assert expected.code == 0, expected.stderr
    own = tmp_path / "run"
    shutil.copytree(folder / "run", own)
    (own / "localrank.toml").write_text(
        'wrt = ["embed", "previous"]\npositions = "same:4"\nresidual = true\n'
        'feature-axis = -1\nlayers = "blocks.[01]"\n'
    )
    words = words_of(folder)
    words[1] = str(own)
    assert invoke(*words).stdout == expected.stdout
    frame = analyze(
        own, wrt=["embed", "previous"], positions="same:4", residual=True, feature_axis=-1,
        layers=["blocks.[01]"], model=f"{folder / 'net.py'}:Net", data=str(folder / "points.pt"),
        data_key="x", points=POINTS, device="cpu",
    )  # fmt: skip
    table = rows(expected.stdout)
    assert list(frame.columns) == list(table[0])
    assert frame["local_rank"].tolist() == pytest.approx([float(r["local_rank"]) for r in table])


def test_a_named_layer_may_fit_one_of_its_sources_alone(folder: Path) -> None:
    """As the first of its blocks: what comes before it has another shape."""
    named = ("--layers", "blocks.0,blocks.1,blocks.2", "--wrt", "previous", "--residual")
    alone = run(folder, *named)
    assert alone.code == 1
    what = "layer 'blocks.0' with respect to the network's input: --residual does not apply"
    assert what in alone.error
    both = ("--wrt", "embed,previous")
    outcome = run(folder, *named, *both)
    assert outcome.code == 0, outcome.stderr
    assert sources(outcome.stdout) == {
        "blocks.0": ["embed"], "blocks.1": ["embed", "blocks.0"], "blocks.2": ["embed", "blocks.1"]
    }  # fmt: skip
    assert "left out, with respect to the network's input, have a different shape" in outcome.stderr
    outcome = run(folder, *named, *both, "--positions", "same:2")
    assert outcome.code == 0, outcome.stderr


def test_a_second_name_names_a_layer_exactly(folder: Path) -> None:
    words = ("--wrt", "embed", "--residual", "--positions", "last")
    for name in ("head", "unembed"):
        outcome = run(folder, *words, "--layers", f"blocks.0,{name}", name="Tied")
        assert outcome.code == 1
        assert "layer 'head' with respect to embed: --positions last with --residual" in (
            outcome.error
        )
    outcome = run(folder, *words, "--layers", "first", "--feature-axis", "first=1", name="Tied")
    assert "such layers have different positions from the source (4 and 6)" in outcome.error


def test_a_layer_that_is_the_source_is_left_out_with_a_note(folder: Path) -> None:
    words = ("--layers", "blocks.?", "--positions", "same:2")
    outcome = run(folder, *words, "--wrt", "blocks.0")
    assert outcome.code == 0, outcome.stderr
    assert "left out, the source itself: blocks.0" in outcome.stderr
    # It has rows of its own with respect to another source.
    outcome = run(folder, *words, "--wrt", "embed,blocks.0")
    assert sources(outcome.stdout)["blocks.0"] == ["embed"]
    assert "the source itself" not in outcome.stderr


def test_an_axis_that_nothing_shows_is_noted(folder: Path, tmp_path: Path) -> None:
    torch.save(torch.randn(4, 3, 3), tmp_path / "square.pt")
    words = [
        *("analyze", str(folder / "run"), "--model", f"{folder / 'net.py'}:Square"),
        *("--data", str(tmp_path / "square.pt"), "--layers", "embed", "--positions", "same:2"),
        *("--last", "1", "--device", "cpu"),
    ]
    outcome = invoke(*words)
    assert outcome.code == 0, outcome.stderr
    asked = (
        "could not determine which axis holds the features for input; 'input' is taken as"
        " 1 point x 3 positions x 3 features. If that is wrong, give --feature-axis input=1"
    )
    assert asked in outcome.stderr
    for axis in ("1", "2"):
        outcome = invoke(*words, "--feature-axis", f"input={axis}")
        assert outcome.code == 0, outcome.stderr
        assert "could not determine" not in outcome.stderr


def test_an_axis_that_changes_nothing_is_noted(folder: Path) -> None:
    words = ("--wrt", "embed", "--layers", "blocks.0", "--feature-axis", "1")
    idle = "--feature-axis has no effect without --positions or --residual"
    assert idle in run(folder, *words).stderr
    assert idle not in run(folder, *words, "--residual").stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--positions same:0", "expected a number of positions, at least 1, after the colon"),
        ("--positions last:3", "unknown. Choose one of all, each[:N]"),
        ("--positions some", "unknown. Choose one of all, each[:N]"),
        ("--positions same:7", "no chosen layer has more than 6 positions. Ask for at most same:6"),
        ("--layers head --wrt previous", "only one layer is chosen, 'head'"),
        ("--layers head --wrt previous --positions last", "only one layer is chosen, 'head'"),
        ("--wrt nothing*", "--wrt nothing*: no module that runs has such a name"),
        ("--wrt embed,nothing", "there is no module 'nothing'"),
        ("--layers blocks.0 --wrt blocks.1,head", "layer 'blocks.0' does not depend on any source"),
        ("--layers blocks.? --wrt head*", "Name a source that runs before them, or other layers"),
        ("--layers head --wrt embed --residual", "have a different shape from the source"),
        (
            "--layers hea? --wrt embed --residual",
            "needs: they have a different shape from the source",
        ),
        ("--wrt previous --input-slice 0", "--input-slice with --wrt previous"),
        ("--positions last --output-slice 0", "--output-slice with --positions last"),
        ("--positions last --feature-axis 3", "axis 3 is not one of its features"),
        ("--positions last --feature-axis 0", "axis 0 is not one of its features"),
        ("--positions last --feature-axis nothing=1", "no module that runs has such a name"),
        ("--positions last --feature-axis x", "'x' is not an integer"),
        (
            "--positions same --layers head --feature-axis head=1",
            "have different positions from the source (9 and 6)",
        ),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, words: str, what: str) -> None:
    outcome = run(folder, *words.split())
    assert outcome.code in {1, 2}
    assert what in outcome.error


def test_a_point_with_one_broken_position_fails_as_a_whole(tmp_path: Path) -> None:
    """Also where it is counted again from the singular values that were kept."""
    (tmp_path / "root.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Root(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(2, 3, bias=False), nn.Linear(3, 2)\n\n"
        "    def forward(self, x):\n"
        "        return self.b(torch.sqrt(self.a(x).square()))\n"
    )
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(3, 2), "b.weight": torch.randn(2, 3), "b.bias": torch.ones(2)}
    save_file(state, tmp_path / "run" / "step_0.safetensors")
    points = torch.randn(5, 4, 2)
    points[1, 2] = 0  # the root of 0 has no derivative
    torch.save(points, tmp_path / "x.pt")
    outcome = invoke(
        "analyze", str(tmp_path / "run"), "--model", f"{tmp_path / 'root.py'}:Root", "--data",
        str(tmp_path / "x.pt"), "--positions", "same", "--device", "cpu", "--spectra",
        str(tmp_path / "spectra"), "--wrt", "a",
    )  # fmt: skip
    assert outcome.code == 3, outcome.stderr
    (row,) = rows(outcome.stdout)
    assert (row["layer"], row["n_points"], row["n_failed"]) == ("b", "4", "1")
    assert (row["rank_min"], row["rank_max"], row["status"]) == ("2", "2", "nonfinite")
    again = invoke("rethreshold", str(tmp_path / "spectra"), "--atol", "0.01")
    assert rows(again.stdout) == [row]


@pytest.mark.parametrize("value", [3, ["embed", 3]])
def test_sources_in_python_are_texts(folder: Path, value: object) -> None:
    with pytest.raises(LocalrankError, match="expected a string or a list of strings"):
        analyze(folder / "run", wrt=value, data=str(folder / "points.pt"), data_key="x")
