"""Outputs whose names are links: what they lead to is written, and the links stay."""

import os
from pathlib import Path

import pytest

from tests.cli.program import QUICK, analyze, invoke, run
from tests.helpers import entries, save_series

FILES = ["real.csv", "real.csv.journal", "real.csv.json"]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5))


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to a table on another disk, say."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/real.csv").write_text("old")
    (tmp_path / "ranks.csv").symlink_to("disk/real.csv")
    return tmp_path / "ranks.csv"


def test_a_table_is_written_through(series: Path, link: Path) -> None:
    outcome = analyze(series, link, "--overwrite")
    assert outcome.code == 0, outcome.stderr
    manifest = link.resolve().with_name("real.csv.json")
    assert f"note: wrote {link} and {manifest}" in outcome.stderr
    assert link.is_symlink()
    assert entries(link.parent) == ["disk", "ranks.csv", "run"]
    assert entries(link.parent / "disk") == FILES
    assert link.read_text().startswith("run,")


@pytest.mark.parametrize("first", ["ranks.csv", "disk/real.csv"])
def test_a_run_is_resumed_under_either_name(series: Path, link: Path, first: str) -> None:
    assert analyze(series, link.parent / first, "--overwrite").code == 0
    (other,) = {"ranks.csv", "disk/real.csv"} - {first}
    assert "2 of 2 checkpoints are already finished" in analyze(series, link.parent / other).stderr
    assert entries(link.parent / "disk") == FILES
    assert link.is_symlink()


def test_what_reads_tables_finds_what_is_beside_the_file(series: Path, link: Path) -> None:
    assert analyze(series, link, "--overwrite").code == 0
    merged = link.with_name("merged.csv")
    assert invoke("merge", str(link), "-o", str(merged)).code == 0
    assert merged.read_text() == link.read_text()
    page = link.with_name("page.html")
    assert invoke("report", str(link), "-o", str(page)).code == 0
    assert "plain MLP" in page.read_text()  # as the manifest says


@pytest.mark.parametrize("part", ["ranks.csv.json", "ranks.csv.journal"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_manifest_and_journal_are_written_through(
    series: Path, tmp_path: Path, part: str, overwrite: bool
) -> None:
    target, elsewhere = tmp_path / "ranks.csv", tmp_path / "disk/part"
    assert analyze(series, target).code == 0
    elsewhere.parent.mkdir()
    (tmp_path / part).rename(elsewhere)
    (tmp_path / part).symlink_to(elsewhere)
    save_series(series, (7,))
    with elsewhere.open() as held:  # as long as it is open, no other file gets its number
        before = os.fstat(held.fileno()).st_ino
        outcome = analyze(series, target, *["--overwrite"] * overwrite)
        after = elsewhere.stat().st_ino
    assert outcome.code == 0, outcome.stderr
    assert ("2 of 3 checkpoints are already finished" in outcome.stderr) is not overwrite
    assert (tmp_path / part).is_symlink()
    assert entries(elsewhere.parent) == ["part"]
    assert after != before or not overwrite
    assert "step_7" in elsewhere.read_text()


@pytest.mark.parametrize("part", ["ranks.csv.json", "ranks.csv.journal"])
@pytest.mark.parametrize("command", ["analyze", "merge", "rethreshold", "submit"])
def test_a_link_beside_the_table_to_another_programs_file(
    series: Path, tmp_path: Path, part: str, command: str
) -> None:
    assert analyze(series, tmp_path / "a.csv", "--spectra", str(tmp_path / "sigma")).code == 0
    checkpoint = series / "step_5.safetensors"
    before = checkpoint.read_bytes()
    (tmp_path / part).symlink_to(checkpoint)
    words = {
        "analyze": (str(series), *QUICK),
        "merge": (str(tmp_path / "a.csv"),),
        "rethreshold": (str(tmp_path / "sigma"),),
        "submit": (str(series), *QUICK, "--workers", "1"),
    }[command]
    output = ("-o", str(tmp_path / "ranks.csv"), "--overwrite")
    outcome = invoke(command, *words, *output)
    assert outcome.code == 1, outcome.stderr
    assert f"{tmp_path / part}: is a link to {checkpoint}, which localrank did" in outcome.error
    assert checkpoint.read_bytes() == before
    (tmp_path / part).unlink()  # as the message suggests
    assert run(command, *words, *output).code == 0


def test_a_link_that_leads_nowhere_makes_the_file(series: Path, link: Path) -> None:
    (link.parent / "disk/real.csv").unlink()
    assert analyze(series, link).code == 0
    assert link.is_symlink()
    assert entries(link.parent / "disk") == FILES


def test_a_link_into_a_folder_that_is_missing(series: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.csv").symlink_to("no/real.csv")
    outcome = analyze(series, tmp_path / "ranks.csv", "--overwrite")
    assert outcome.code == 1
    assert f"{tmp_path}/no/real.csv: cannot be written (No such file" in outcome.error
    assert f"Make the folder {tmp_path}/no first" in outcome.error
    assert entries(tmp_path) == ["ranks.csv", "run"]


@pytest.mark.parametrize("part", ["ranks.csv", "ranks.csv.json", "ranks.csv.journal"])
def test_links_in_a_circle(series: Path, tmp_path: Path, part: str) -> None:
    (tmp_path / part).symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / part)
    outcome = analyze(series, tmp_path / "ranks.csv", "--overwrite")
    assert outcome.code == 1, outcome.stderr
    assert (
        f"{tmp_path / part}: cannot be written (Too many levels of symbolic links)" in outcome.error
    )
    assert entries(tmp_path) == sorted(["b", part, "run"])


@pytest.mark.parametrize("part", ["ranks.csv", "ranks.csv.json", "ranks.csv.journal"])
@pytest.mark.parametrize("kind", ["folder", "link to a folder", "pipe"])
def test_what_is_not_a_file_is_refused_and_stays(
    series: Path, tmp_path: Path, part: str, kind: str
) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / part)
    elif kind == "folder":
        (tmp_path / part).mkdir()
    else:
        (tmp_path / "folder.csv").mkdir()
        (tmp_path / part).symlink_to("folder.csv")
    before = entries(tmp_path)
    outcome = analyze(series, tmp_path / "ranks.csv", "--overwrite")
    assert outcome.code == 1, outcome.stderr
    assert f"{tmp_path / part}: is not a file." in outcome.error
    assert entries(tmp_path) == before


def test_a_link_to_a_file_of_another_format(series: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.csv").symlink_to("real.jsonl")
    outcome = analyze(series, tmp_path / "ranks.csv", "--overwrite")
    assert outcome.code == 2
    assert f"is a link to {tmp_path}/real.jsonl, whose suffix" in outcome.error


def test_the_other_name_of_a_hard_link_keeps_the_earlier_table(
    series: Path, tmp_path: Path
) -> None:
    (tmp_path / "ranks.csv").write_text("old")
    os.link(tmp_path / "ranks.csv", tmp_path / "kept.csv")
    assert analyze(series, tmp_path / "ranks.csv", "--overwrite").code == 0
    assert (tmp_path / "kept.csv").read_text() == "old"


def test_merge_rethreshold_and_submit(series: Path, link: Path) -> None:
    folder = link.parent
    assert analyze(series, folder / "a.csv", "--spectra", str(folder / "sigma")).code == 0
    commands = (
        ("merge", str(folder / "a.csv")),
        ("rethreshold", str(folder / "sigma")),
        ("submit", str(series), *QUICK, "--workers", "1"),
    )
    for command in commands:
        outcome = run(*command, "-o", str(link), "--overwrite")
        assert outcome.code == 0, outcome.stderr
        assert f"wrote {link} and {folder}/disk/real.csv.json" in outcome.stderr
        assert link.is_symlink()
        assert entries(folder / "disk") == FILES


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_picture(series: Path, tmp_path: Path, name: str) -> None:
    assert analyze(series, tmp_path / "ranks.csv").code == 0
    (tmp_path / name).symlink_to(f"real-{name}")
    (tmp_path / f"real-{name}").write_text("old")
    assert invoke("plot", str(tmp_path / "ranks.csv"), "-o", str(tmp_path / name)).code == 0
    assert (tmp_path / name).is_symlink()
    assert (tmp_path / f"real-{name}").stat().st_size > 1000


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "run", *QUICK, "-o", f"{LONG}.csv"),
        ("analyze", "run", *QUICK, "-o", f"{'x' * 250}.csv"),  # but not with .journal behind it
        ("analyze", "run", *QUICK, "-o", "b.csv", "--spectra", LONG),
        ("plot", "a.csv", "-o", f"{LONG}.png"),
        ("report", "a.csv", "-o", f"{LONG}.html"),
    ],
)
def test_names_that_are_too_long(
    series: Path, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert analyze(series, tmp_path / "a.csv").code == 0
    before = entries(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = invoke(*words)
    assert outcome.code == 1
    assert outcome.error.endswith("(File name too long). Choose a shorter name.")
    assert entries(tmp_path) == before


@pytest.mark.parametrize("words", [("--data", f"{LONG}.npy"), ("--plan", LONG)])
def test_names_to_read_that_are_too_long(series: Path, words: tuple[str, ...]) -> None:
    outcome = invoke("analyze", str(series), *QUICK, *words)
    assert outcome.code == 1
    assert "(File name too long)" in outcome.error


@pytest.mark.parametrize("place", ["a.csv.json", "sigma/run/step_5.safetensors"])
@pytest.mark.parametrize("command", ["plot", "report", "rethreshold"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    series: Path, tmp_path: Path, place: str, command: str
) -> None:
    sigma = str(tmp_path / "sigma")
    assert analyze(series, tmp_path / "a.csv", "--spectra", sigma).code == 0
    (tmp_path / place).unlink()
    os.mkfifo(tmp_path / place)
    table = str(tmp_path / "a.csv")
    words = {
        "plot": (table, "--kind", "spectrum", "--spectra", sigma),
        "report": (table, "--spectra", sigma),
        "rethreshold": (sigma,),
    }[command]
    outcome = invoke(command, *words)
    if place == "a.csv.json":
        assert outcome.code == 0, outcome.stderr
    else:
        assert outcome.code == 1
        assert outcome.error == f"{tmp_path / place}: is not a regular file. Remove it."
