"""`localrank plot` as a command: files, messages, exit statuses."""

import os
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from localrank_cli.measures.table import MEASURES
from localrank_cli.options.views import KINDS
from tests.cli.program import COMMAND, QUICK, invoke, run, run_cold
from tests.figures.tables import budgets, save_spectra, table
from tests.figures.test_plane import with_bounds
from tests.helpers import entries, evil_code, save_series

_THEIRS = ("MATPLOTLIBRC", "MPLBACKEND", "MPLCONFIGDIR")
CLEAN = {name: value for name, value in os.environ.items() if name not in _THEIRS}


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A table with one tolerance."""
    table().to_csv(tmp_path / "ranks.csv", index=False)
    return tmp_path / "ranks.csv"


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_chooses(ranks: Path, suffix: str, start: bytes) -> None:
    target = ranks.with_name("out" + suffix)
    outcome = invoke("plot", str(ranks), "-o", str(target))
    assert (outcome.code, outcome.stdout) == (0, "")
    assert outcome.stderr == f"localrank: note: wrote {target}\n"
    assert target.read_bytes().startswith(start)
    assert entries(ranks.parent) == sorted(["ranks.csv", target.name])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_name_beside_the_table(tmp_path: Path, kind: str) -> None:
    # With all that any kind needs: several runs, and bounds on the information.
    of_budgets = KINDS[kind].is_from_budgets
    frame = budgets() if of_budgets else with_bounds(table(runs=("decay", "none")))
    frame.to_csv(tmp_path / "ranks.csv", index=False)
    words = ["plot", str(tmp_path / "ranks.csv"), "--kind", kind, "-q", "--dpi", "50"]
    if KINDS[kind].is_from_spectra:
        words += ["--spectra", str(save_spectra(tmp_path / "s.safetensors"))]
    outcome = invoke(*words)
    assert (outcome.code, outcome.stderr) == (0, "")
    name = "ranks.png" if kind == "ranks" else f"ranks.{kind}.png"
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["plot", "show"])
def test_the_help_names_the_measures(command: str) -> None:
    text = invoke(command, "--help").stdout
    assert [name for name in MEASURES if name not in text] == []


def test_an_existing_figure_is_replaced(ranks: Path) -> None:
    target = ranks.with_suffix(".png")
    target.write_bytes(b"old")
    assert invoke("plot", str(ranks)).code == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_compare_takes_several_tables(tmp_path: Path) -> None:
    for name in ("decay", "none"):
        (tmp_path / name).mkdir()
        table().to_csv(tmp_path / name / "ranks.csv", index=False)
    words = [str(tmp_path / name / "ranks.csv") for name in ("decay", "none")]
    target = tmp_path / "both.svg"
    outcome = invoke("plot", *words, "--kind", "compare", "-o", str(target))
    assert outcome.code == 0
    assert target.stat().st_size > 5000


def test_with_metrics(ranks: Path) -> None:
    metrics = ranks.with_name("metrics.csv")
    metrics.write_text("step,accuracy,name\n0,0.1,a\n100,0.9,b\n")
    small = invoke("plot", str(ranks), "--with", f"{metrics}:accuracy", "-o", f"{ranks}.png")
    assert small.code == 0
    for column, message in (
        ("loss", "has no column loss"),
        ("name", "column name holds no numbers"),
    ):
        outcome = invoke("plot", str(ranks), "--with", f"{metrics}:{column}")
        assert outcome.code == 1
        assert message in outcome.error
    outcome = invoke("plot", str(ranks), "--with", "metrics.csv")
    assert outcome.code == 2
    assert "not of the form METRICS.csv:COLUMN" in outcome.error


@pytest.mark.parametrize("command", ["plot", "report", "show"])
@pytest.mark.parametrize("column", ["n_in", "n_out", "n_points", "n_failed"])
def test_sizes_that_a_table_by_hand_lacks(tmp_path: Path, command: str, column: str) -> None:
    table().assign(**{column: ""}).to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke(command, str(tmp_path / "a.csv"))
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("column", ["local_rank", "local_rank_se"])
def test_an_infinite_cell(tmp_path: Path, column: str) -> None:
    frame = table()
    frame.loc[1, column] = float("inf")
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("plot", str(tmp_path / "a.csv"))
    assert outcome.code == 0, outcome.stderr


def test_failed_rows_get_a_note(tmp_path: Path) -> None:
    frame = table()
    frame.loc[2, "status"] = "nonfinite"
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("plot", str(tmp_path / "a.csv"))
    assert outcome.code == 0
    assert (
        "note: 1 of 12 rows are left out because they failed (1 nonfinite; step 0)"
        in outcome.stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "pie"], f"--kind pie: unknown. Choose one of {', '.join(KINDS)}."),
        (["-o", "a.jpg"], "the suffix '.jpg' is not a figure format"),
        (["--size", "big"], "--size big: not of the form WxH"),
        (["--size", "0x4"], "--size 0x4: must be from 2x1.5 to 100x100 inches"),
        (["--dpi", "3"], "--dpi 3: expected at least 20."),
        (["--dpi", "nan"], "--dpi nan: expected a finite number."),
        (["--step", "1.5", "--kind", "depth"], "--step 1.5: expected a whole number."),
        (["--layers", ""], "--layers '': is empty"),
        (["--by", "beta"], "--by: has no effect on --kind ranks"),
        (["--step", "3"], "--step: has no effect on --kind ranks"),
        (["--kind", "heatmap", "--with", "a:b"], "--with: has no effect on --kind heatmap"),
        (["--kind", "spectrum"], "--kind spectrum: needs singular values"),
        (["--spectra", "x"], "--spectra: has no effect on --kind ranks"),
        (["--style", "nope"], "--style nope: neither a file nor a style"),
    ],
)
def test_wrong_usage(ranks: Path, words: list[str], message: str) -> None:
    outcome = invoke("plot", str(ranks), *words)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.error
    assert entries(ranks.parent) == ["ranks.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--y", "nothing"], "--y nothing: no such column"),
        (["--tolerance", "rtol=1"], "--tolerance rtol=1: not in the table. It has atol=0.01."),
        (["--kind", "compare"], "needs 2 to 12 values of run, but found 1: run"),
    ],
)
def test_what_only_the_table_shows_is_not_a_usage_error(
    ranks: Path, words: list[str], message: str
) -> None:
    """Status 2 means that no file was opened: a script may rely on that."""
    outcome = invoke("plot", str(ranks), *words)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert message in outcome.error
    assert entries(ranks.parent) == ["ranks.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "has no column run, step, layer, layer_index, tolerance"),
        ("run,step,layer,layer_index,tolerance\n", "holds a header but no rows"),
    ],
)
def test_files_that_are_not_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    outcome = invoke("plot", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert message in outcome.error
    assert entries(tmp_path) == ["a.csv"]


def test_mixed_tolerances_need_a_choice(tmp_path: Path) -> None:
    table(tolerances=("atol=0.01", "rtol=eps")).to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("plot", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert outcome.error == (
        "the table has several values of tolerance: atol=0.01, rtol=eps. Choose one with"
        " --tolerance."
    )
    assert invoke("plot", str(tmp_path / "a.csv"), "--tolerance", "rtol=eps").code == 0


def test_targets_that_cannot_be_written(ranks: Path) -> None:
    outcome = invoke("plot", str(ranks), "-o", str(ranks.parent / "nope/a.png"))
    assert outcome.code == 1
    assert "cannot be written (No such file or directory). Make the folder" in outcome.error
    (ranks.parent / "folder.png").mkdir()
    outcome = invoke("plot", str(ranks), "-o", str(ranks.parent / "folder.png"))
    assert outcome.code == 1
    assert "is not a file" in outcome.error


def in_python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


def test_without_matplotlib(ranks: Path) -> None:
    done = in_python(
        "import sys; sys.modules['matplotlib'] = None\n"
        f"from localrank_cli.cli.main import app; app(['plot', {str(ranks)!r}])"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("localrank: error: figures need matplotlib")
    assert done.stderr.endswith("Run: pip install 'localrank[plot]'\n")
    assert entries(ranks.parent) == ["ranks.csv"]


def test_letters_that_the_font_lacks_are_one_note(tmp_path: Path) -> None:
    table(layers=1).assign(layer="\U0001f9ea").to_csv(tmp_path / "a.csv", index=False)
    outcome = run("plot", str(tmp_path / "a.csv"))
    assert outcome.code == 0
    assert outcome.stderr.count(" missing from ") == 1
    assert all(line.startswith("localrank: note: ") for line in outcome.stderr.splitlines())


def test_torch_is_not_imported(ranks: Path) -> None:
    done = in_python(
        "import sys; from localrank_cli.cli.main import app\n"
        f"try: app(['plot', {str(ranks)!r}, '-q'])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_table_of_parquet_needs_its_reader(tmp_path: Path) -> None:
    pd.DataFrame().to_csv(tmp_path / "a.parquet")
    assert invoke("plot", str(tmp_path / "a.parquet")).code == 1


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of two runs, each with other weights."""
    return save_series(tmp_path / "a", (0, 5)), save_series(tmp_path / "b", (0, 5))


def plotted(tables: list[Path], *words: str) -> str:
    target = tables[0].with_name("p.svg")
    outcome = invoke("plot", *map(str, tables), *words, "-o", str(target))
    assert outcome.code == 0
    return outcome.stderr


def test_runs_of_one_kind_are_averaged(two: tuple[Path, Path], tmp_path: Path) -> None:
    outs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for folder, out, seed in zip(two, outs, "12", strict=True):
        words = (str(folder), *QUICK, "--seed", seed, "-o", str(out), "-q")
        assert invoke("analyze", *words).code == 0
    assert "means over 2 runs: a, b" in plotted(outs)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("--activation", "tanh"), "model"),
        (("--data", "uniform:4"), "data (normal:4, uniform:4)"),
        (("--points", "6"), "points (5, 6)"),
        (("--noise", "2"), "noise"),
        (("--data-scale", "2"), "data scale (none, 2)"),
        (("--layers", "0"), "layers"),
    ],
)
@pytest.mark.cover(1)
@pytest.mark.parametrize("same_name", [False, True])
def test_manifests_that_differ_in_more_than_the_seed(
    two: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...], note: str, same_name: bool
) -> None:
    (tmp_path / "x").mkdir()
    second = two[1].rename(tmp_path / "x/a") if same_name else two[1]
    outs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for folder, out, more in zip((two[0], second), outs, ((), words), strict=True):
        own = [*QUICK, *more]
        assert invoke("analyze", str(folder), *own, "-o", str(out), "-q").code == 0
    text = plotted(outs)
    assert f"the runs differ in {note}" in text
    assert "means over" not in text
    assert "side by side" in text


def test_other_columns_of_the_folder(two: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, beta in zip(two, (1, 2), strict=True):
        (folder / "localrank.toml").write_text(f"[columns]\nbeta = {beta}\n")
    out = tmp_path / "both.csv"
    assert invoke("analyze", *map(str, two), *QUICK, "-o", str(out), "-q").code == 0
    assert "the runs differ in beta (1, 2)" in plotted([out])


RC = "figure.facecolor: red\ntext.usetex: True\nsvg.hashsalt: theirs\nbackend: TkAgg\n"


@cache
def plain(text: str) -> bytes:
    """Return the picture of somebody without any settings."""
    with tempfile.TemporaryDirectory() as folder:
        ranks, target = Path(folder, "ranks.csv"), Path(folder, "plain.svg")
        ranks.write_text(text)
        assert run("plot", str(ranks), "-o", str(target), env=CLEAN).code == 0
        return target.read_bytes()


@pytest.mark.processes
@pytest.mark.parametrize(
    "kind",
    [
        "folder and backend",
        "pipe",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("home", "variable", "bytes")),
    ],
)
def test_settings_of_matplotlib_have_no_effect(ranks: Path, tmp_path: Path, kind: str) -> None:
    here, env = tmp_path / "anyones", dict(CLEAN)
    (here / "home/matplotlib").mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(here / "matplotlibrc")
    elif kind == "bytes":
        (here / "matplotlibrc").write_bytes(b"font.size: \xff\xfe\n")
    else:
        if kind == "folder and backend":
            env["MPLBACKEND"] = "module://evil"
            (here / "evil.py").write_text(evil_code(here / "ran"))
        place = {"folder and backend": "matplotlibrc", "home": "home/matplotlib/matplotlibrc"}
        (here / place.get(kind, "theirs")).write_text(RC)
        env |= {"XDG_CONFIG_HOME": str(here / "home")} if kind == "home" else {}
        env |= {"MATPLOTLIBRC": "theirs"} if kind == "variable" else {}
    target = here / "out.svg"
    outcome = run_cold("plot", str(ranks), "-o", str(target), cwd=here, env=env)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == f"localrank: note: wrote {target}\n"
    assert target.read_bytes() == plain(ranks.read_text())
    assert not (here / "ran").exists()


@pytest.mark.processes
def test_a_relative_folder_of_settings_is_the_users(ranks: Path, tmp_path: Path) -> None:
    env = CLEAN | {"MPLCONFIGDIR": "mine"}
    assert run_cold("plot", str(ranks), "-q", cwd=tmp_path, env=env).code == 0
    assert (tmp_path / "mine").is_dir()  # the list of fonts is kept in it


@pytest.mark.processes
def test_a_current_folder_that_was_removed(ranks: Path, tmp_path: Path) -> None:
    words = shlex.join([*COMMAND, "plot", str(ranks), "-q"])
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir ../gone && {words}"
    done = subprocess.run(
        ["sh", "-c", script], check=False, capture_output=True, text=True, env=CLEAN
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_table_of_ranks_is_no_compression(ranks: Path) -> None:
    outcome = invoke("plot", str(ranks), "--kind", "compression")
    assert outcome.code == 1
    assert "has no column budget, weights, loss" in outcome.error
    assert "Name a table that localrank compress wrote." in outcome.error
    outcome = invoke("plot", str(ranks), "--kind", "compression", "--y", "max_rank")
    assert outcome.code == 2
    assert "--y: has no effect on --kind compression" in outcome.error
