"""`--method interval` on the command line: the same bounds however a run is divided or resumed."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from localrank_cli.results.schema import check_line
from tests.cli.program import invoke, rows, start_warm
from tests.helpers import NET_CODE, WAITS, net_weights, save_series

COLUMNS = [
    "rank_low", "rank_high", "rank_certain_low", "confidence", "sigma_1_low", "sigma_1_high",
    "n_products",
]  # fmt: skip
PLAIN = ("--data", "normal:9", "--device", "cpu", "--points", "5")
TOLERANCES = ("--rtol", "0.1", "--atol", "0.2")
WORDS = (*PLAIN, *TOLERANCES, "--method", "interval", "--products", "200")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5), (9, 30, 12, 3))


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The series for tests that leave it as it is."""
    return save_series(tmp_path_factory.mktemp("same") / "run", (0, 5), (9, 30, 12, 3))


@pytest.fixture(scope="module")
def exact(same: Path) -> list[dict[str, str]]:
    """The rows of exact ranks."""
    return rows(invoke("analyze", str(same), *PLAIN, *TOLERANCES).stdout)


@pytest.fixture(scope="module")
def bounded(same: Path) -> Path:
    """The table of bounds."""
    table = same.parent / "bounds.csv"
    outcome = invoke("analyze", str(same), *WORDS, "-o", str(table))
    assert outcome.code == 0, outcome.stderr
    return table


def test_bounds_hold_the_exact_ranks(exact: list[dict[str, str]], bounded: Path) -> None:
    found = rows(bounded.read_text())
    assert list(found[0])[-len(COLUMNS) :] == COLUMNS
    for row, true in zip(found, exact, strict=True):
        low, high = float(row["rank_low"]), float(row["rank_high"])
        assert low <= float(true["local_rank"]) <= high
        assert float(row["rank_certain_low"]) <= float(true["local_rank"])
        assert row["sigma_1_low"]
        norm = float(true["spectral_norm"])
        # Nine digits are written.
        assert float(row["sigma_1_low"]) <= norm * (1 + 1e-8)
        assert float(row["sigma_1_high"]) >= norm * (1 - 1e-8)
        for name in ("local_rank", "rank_min", "rank_max", "near_tol", "effective_rank"):
            assert row[name] == ""
        assert row["confidence"] == "0.95"
        assert row["method"] == "interval(lanczos,s=1,nu<=33,float64,seed=0)"
        assert int(row["n_products"]) <= 5 * 200
    # Rank 9 of 9 at most: everything is split off.
    assert {row["rank_low"] == row["rank_high"] for row in found} == {True}


def test_one_point_has_two_probes(same: Path) -> None:
    found = rows(invoke("analyze", str(same), *WORDS, "--points", "1").stdout)
    assert {row["method"] for row in found} == {"interval(lanczos,s=2,nu<=50,float64,seed=0)"}


@pytest.mark.parametrize("count", [4, pytest.param(6, marks=pytest.mark.long)])
def test_shards_and_resumed_runs_give_the_same_bytes(
    series: Path, tmp_path: Path, count: int
) -> None:
    words = (*WORDS, "--layers", "2", "--products", "100")
    whole = tmp_path / "whole.csv"
    assert invoke("analyze", str(series), *words, "-o", str(whole)).code == 0
    parts = tmp_path / "parts"
    for index in range(count):  # of four: parts of the points of each checkpoint
        part = ("-o", f"{parts}/", "--shard", f"{index}/{count}")
        assert invoke("analyze", str(series), *words, *part).code == 0
    merged = tmp_path / "merged.csv"
    assert invoke("merge", str(parts), "-o", str(merged)).code == 0
    assert merged.read_bytes() == whole.read_bytes()

    cut = tmp_path / "cut.csv"
    assert invoke("analyze", str(series), *words, "-o", str(cut), "--steps", "0:0").code == 0
    again = invoke("analyze", str(series), *words, "-o", str(cut))
    assert again.code == 0
    assert cut.read_bytes() == whole.read_bytes()


@pytest.fixture(scope="module")
def begun(same: Path) -> Path:
    """A table of the first of two checkpoints."""
    table = same.parent / "begun.csv"
    words = ("-o", str(table), "--steps", "0:0")
    assert invoke("analyze", str(same), *WORDS, *words).code == 0
    return table


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--confidence", "0.9"), "confidence"),
        (("--width", "50%"), "width"),
        (("--products", "100"), "products"),
        (("--seed", "1"), "seed"),
        (("--method", "exact"), "method"),
    ],
)
def test_resuming_with_other_terms_is_refused(
    same: Path, begun: Path, words: tuple[str, str], named: str
) -> None:
    before = begun.read_bytes()
    given = list(WORDS)
    if words[0] == "--method":
        given = [*PLAIN, *TOLERANCES]
    elif words[0] in given:
        place = given.index(words[0])
        del given[place : place + 2]
    outcome = invoke("analyze", str(same), *given, *words, "-o", str(begun))
    assert outcome.code != 0
    assert named in outcome.stderr
    assert begun.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "interval", "--pooled"), "--method interval with --pooled"),
        (
            ("--method", "interval", "--dtype", "float32", "--atol", "1e-6"),
            "rounding in float32 allows --atol only from",
        ),
        (("--method", "interval", "--rtol", "1e-6"), "with --rtol 1e-06"),
        (
            ("--method", "interval", "--positions", "last"),
            "with --positions last: the bounds are for whole Jacobians only. Use --method exact",
        ),
        (
            ("--method", "interval", "--sigma-1", "full", "--output-slice", ":2"),
            "with --sigma-1 full: products use only the slice. Use --method exact",
        ),
        (("--width", "2%"), "--width without --method interval"),
        (("--products", "100"), "--products without --method interval"),
        (("--confidence", "0.9"), "--confidence without --method interval"),
        (("--method", "interval", "--width", "x%"), "--width x%"),
        (("--method", "interval", "--confidence", "1"), "--confidence 1"),
        (("--method", "interval", "--products", "5"), "--products 5"),
    ],
)
def test_what_intervals_cannot_serve_is_refused(
    same: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = invoke("analyze", str(same), *PLAIN, *words)
    assert outcome.code != 0
    assert message in outcome.stderr


def test_the_tolerance_of_rounding_has_bounds(series: Path) -> None:
    """Of layers this small it is under 1e-5, which is refused as a number."""
    exact = rows(invoke("analyze", str(series), *PLAIN, "--rtol", "eps").stdout)
    found = rows(
        invoke("analyze", str(series), *PLAIN, "--rtol", "eps", "--method", "interval").stdout
    )
    for row, true in zip(found, exact, strict=True):
        assert float(row["rtol"]) < 1e-5
        assert float(row["rank_low"]) <= float(true["local_rank"]) <= float(row["rank_high"])


def test_a_folder_may_ask_for_intervals_and_the_command_line_for_exact_ranks(series: Path) -> None:
    settings = series / "localrank.toml"
    settings.write_text('method = "interval"\nwidth = "5%"\nproducts = 60\n')
    assert rows(invoke("analyze", str(series), *PLAIN).stdout)[0]["rank_low"]
    exact = invoke("analyze", str(series), *PLAIN, "--method", "exact")
    assert rows(exact.stdout)[0]["local_rank"]
    settings.write_text('width = "5%"\n')
    refused = invoke("analyze", str(series), *PLAIN)
    assert refused.code != 0
    assert "width without method = 'interval'" in refused.stderr


def test_singular_values_cannot_be_kept(series: Path, tmp_path: Path) -> None:
    words = ("-o", str(tmp_path / "t.csv"), "--spectra", str(tmp_path / "kept"))
    outcome = invoke("analyze", str(series), *WORDS, *words)
    assert outcome.code != 0
    assert "rethreshold" in outcome.stderr


def test_vectors_that_do_not_fit_are_refused_with_products_that_do(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run", (0,), (2000, 2000))
    words = [
        "--data", "normal:2000", "--points", "1", "--device", "cpu", "--method", "interval",
        "--memory", "16MiB", "--rtol", "0.1",
    ]  # fmt: skip
    outcome = invoke("analyze", str(series), *words)
    assert outcome.code != 0
    advised = outcome.stderr.split("Give --products ")[1].split()[0].strip(",")
    assert invoke("analyze", str(series), *words, "--products", advised).code == 0


def test_bounds_are_shown_and_drawn_as_bars(bounded: Path, tmp_path: Path) -> None:
    table = str(bounded)
    shown = invoke("show", table, "--tolerance", "rtol=0.1").stdout
    assert "bounds on the local rank at rtol=0.1" in shown
    row = next(one for one in rows(Path(table).read_text()) if one["tolerance"] == "rtol=0.1")
    assert f"{float(row['rank_low']):.1f}..{float(row['rank_high']):.1f}" in shown
    picture = str(tmp_path / "p.svg")
    drawn = ("--tolerance", "rtol=0.1", "-o", picture)
    assert invoke("plot", table, *drawn).code == 0
    assert "rank within the bars" in Path(picture).read_text()
    refused = invoke("plot", table, *drawn, "--kind", "heatmap")
    assert refused.code != 0
    assert "--y rank_low" in refused.stderr
    assert invoke("plot", table, *drawn, "--kind", "heatmap", "--y", "rank_low").code == 0
    page = str(tmp_path / "page.html")
    assert invoke("report", table, "-o", page).code == 0
    assert "upper bound of the local rank" in Path(page).read_text()


def test_bounds_are_compared_and_a_rank_that_is_not_there_is_not(tmp_path: Path) -> None:
    tables = []
    for group in "ab":
        runs = [save_series(tmp_path / f"{group}{seed}", (0,), (9, 30, 3)) for seed in (0, 1)]
        tables.append(str(tmp_path / f"{group}.csv"))
        done = invoke("analyze", *map(str, runs), *WORDS, "-o", tables[-1])
        assert done.code == 0, done.stderr
    for measure in ("local_rank", "effective_rank"):
        refused = invoke("compare", *tables, "--y", measure)
        assert refused.code != 0
        assert f"there is no {measure} in the rows of run a0" in refused.stderr
        assert "--y rank_low or --y rank_high" in refused.stderr
    for measure in ("rank_low", "rank_high"):
        outcome = invoke("compare", *tables, "--tolerance", "rtol=0.1", "--y", measure)
        assert rows(outcome.stdout)[0]["difference"]


def test_a_journal_with_impossible_evidence_is_refused(bounded: Path) -> None:
    lines = Path(f"{bounded}.journal").read_text().splitlines()
    body = next(
        json.loads(line[line.index("{") :].split("\t")[-1])
        for line in lines
        if '"evidence"' in line
    )
    layer = body["layers"][0] if "layers" in body else body["body"]["layers"][0]
    head = {
        "kind": "checkpoint", "run": "run", "checkpoint": "a", "step": 0, "status": "ok",
        "finite": True, "points": None, "facts": {},
    }  # fmt: skip
    check_line("checkpoint", {"head": head, "body": {"message": "", "layers": [layer]}})
    for path, value in (("certain", 10), ("deflated", 10), ("high", 1.5), ("low", -0.1)):
        wrong = json.loads(json.dumps(layer))
        wrong["evidence"]["points"][0]["levels"][0][path] = value
        with pytest.raises(ValueError, match="evidence"):
            check_line("checkpoint", {"head": head, "body": {"message": "", "layers": [wrong]}})


def test_a_refusal_and_inspect_name_intervals_with_what_they_take(tmp_path: Path) -> None:
    """And what they name runs."""
    series = save_series(tmp_path / "run", (0,), (700, 700))
    words = ("--data", "normal:700", "--points", "1", "--device", "cpu", "--memory", "17MiB")
    refused = invoke("analyze", str(series), *words, "--rtol", "0.1")
    assert refused.code != 0
    said = "--method interval (an interval for each rank, at most 600 products with each Jacobian"
    assert said in refused.stderr
    inspected = invoke("inspect", str(series), *words, "--no-time").stdout
    assert said.replace(" (", ": ") in inspected
    bounded = (*words, "--rtol", "0.1", "--method", "interval")
    line = invoke("inspect", str(series), *bounded, "--no-time").stdout.splitlines()[-1].split()
    assert line[0] == "0"
    assert "600" in line
    assert line[-1] == "yes"
    assert invoke("analyze", str(series), *bounded).code == 0


# At its 40th pass with a checkpoint marked by its bias, which is one of the products.
WAITS_LATE = WAITS.replace(
    "        if self.a.bias[0] > 9:\n",
    "        Net.passes = getattr(Net, 'passes', 0) + int(self.a.bias[0] > 9)\n"
    "        if Net.passes == 40:\n",
)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL]
)
def test_a_run_that_is_stopped_among_its_products_is_resumed(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    code = WAITS_LATE.format(folder=str(tmp_path)).lstrip("\n")
    (tmp_path / "net.py").write_text(NET_CODE.replace("        return self.b", code))
    torch.save(net_weights(), folder / "step_1.pt")
    torch.save(net_weights() | {"a.bias": torch.full((3,), 10.0)}, folder / "step_2.pt")
    words = [
        "analyze", str(folder), "--data", "normal:4", "--device", "cpu", "--points", "5",
        "--model", f"{tmp_path}/net.py:Net", "--method", "interval", "--rtol", "0.1", "-o",
    ]  # fmt: skip
    stopped, whole = tmp_path / "stopped.csv", tmp_path / "whole.csv"
    with start_warm(*words, str(stopped)) as process:
        for _ in range(1200):
            if (tmp_path / "waiting").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.wait() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert stderr.splitlines()[-1] == "localrank: stopped by SIGINT"
    assert (tmp_path / "waiting").exists()
    (tmp_path / "go").touch()
    again = invoke(*words, str(stopped))
    assert again.code == 0, again.stderr
    assert "resuming: 1 of 2 checkpoints are already finished" in again.stderr
    assert invoke(*words, str(whole)).code == 0
    assert stopped.read_bytes() == whole.read_bytes()
    assert {row["step"] for row in rows(whole.read_text())} == {"1", "2"}


def test_products_in_float32_say_so_and_certify_nothing(
    same: Path, exact: list[dict[str, str]]
) -> None:
    found = rows(invoke("analyze", str(same), *WORDS, "--dtype", "float32").stdout)
    for row, true in zip(found, exact, strict=True):
        assert float(row["rank_low"]) <= float(true["local_rank"]) <= float(row["rank_high"])
        assert row["method"] == "interval(lanczos,s=1,nu<=33,float32,seed=0)"
        assert row["dtype"] == "float32"
        assert row["rank_certain_low"] == ""
