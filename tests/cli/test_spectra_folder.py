"""The folder of `--spectra`: nothing but localrank's own files is replaced there."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import entries, save_series, weights

FILE = "step_5.safetensors"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5))


def analyze(series: Path, *words: str) -> Outcome:
    table = series.with_name("a.csv")
    return invoke("analyze", str(series), *QUICK, "-q", "-o", str(table), *words)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("words", [(), ("--overwrite",)], ids=["first", "overwrite"])
def test_the_checkpoints_are_not_replaced_by_their_singular_values(
    series: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    if words:
        assert analyze(series).code == 0
    before, beside = contents(series), contents(tmp_path)
    outcome = analyze(series, "--spectra", str(tmp_path), *words)  # tmp_path/run/step_0.safetensors
    assert outcome.code == 1, outcome.stderr
    assert f"{series}/step_0.safetensors: is not a file of singular values" in outcome.error
    assert contents(series) == before
    assert contents(tmp_path) == beside  # an earlier table, too
    # What the message suggests.
    assert analyze(series, "--spectra", str(tmp_path / "sigma"), *words).code == 0


def test_under_a_link_either(series: Path, tmp_path: Path) -> None:
    (tmp_path / "sigma").mkdir()
    (tmp_path / "sigma/run").symlink_to(series)
    before = contents(series)
    assert analyze(series, "--spectra", str(tmp_path / "sigma")).code == 1
    assert contents(series) == before


@pytest.mark.parametrize("content", [b"", b"notes", "half"])
def test_a_damaged_file_is_named_and_computed_again_once_it_is_removed(
    series: Path, tmp_path: Path, content: bytes | str
) -> None:
    sigma = tmp_path / "sigma"
    assert analyze(series, "--spectra", str(sigma)).code == 0
    whole, counted = (sigma / "run" / FILE).read_bytes(), invoke("rethreshold", str(sigma)).stdout
    spoiled = whole[: len(whole) // 2] if isinstance(content, str) else content
    (sigma / "run" / FILE).write_bytes(spoiled)
    outcome = analyze(series, "--spectra", str(sigma))
    assert outcome.code == 1, outcome.stderr
    assert f"{sigma}/run/{FILE}: is not a file of singular values" in outcome.error
    assert (sigma / "run" / FILE).read_bytes() == spoiled
    (sigma / "run" / FILE).unlink()
    assert analyze(series, "--spectra", str(sigma)).code == 0
    assert invoke("rethreshold", str(sigma)).stdout == counted


def test_a_file_that_appears_during_the_run(series: Path, tmp_path: Path) -> None:
    sigma = tmp_path / "sigma/run"
    (tmp_path / "model.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n\ndef build():\n"
        f"    Path({str(sigma / FILE)!r}).write_text('mine')\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
    )
    sigma.mkdir(parents=True)
    outcome = analyze(
        series, "--spectra", str(sigma.parent), "--model", f"{tmp_path}/model.py:build"
    )
    assert outcome.code == 1, outcome.stderr
    assert (sigma / FILE).read_text() == "mine"


def test_another_runs_values_are_replaced(series: Path, tmp_path: Path) -> None:
    sigma = tmp_path / "sigma"
    assert analyze(series, "--spectra", str(sigma)).code == 0
    before = contents(sigma / "run")
    again = analyze(series, "--spectra", str(sigma), "--overwrite", "--seed", "3")
    assert again.code == 0, again.stderr
    assert entries(sigma / "run") == list(before)
    assert contents(sigma / "run") != before


def counted(folder: Path) -> str:
    outcome = invoke("rethreshold", str(folder))
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("what", ["another checkpoint", "another seed", "other weights"])
def test_resuming_takes_no_other_values_for_a_checkpoints_own(
    series: Path, tmp_path: Path, what: str
) -> None:
    sigma, other = tmp_path / "sigma", tmp_path / "other"
    assert analyze(series, "--spectra", str(sigma)).code == 0
    expected = counted(sigma)
    if what == "another checkpoint":
        (sigma / "run" / FILE).write_bytes((sigma / "run/step_0.safetensors").read_bytes())
    else:
        whole = (series / FILE).read_bytes()
        if what == "other weights":
            save_file(weights(seed=77), series / FILE)
        seed = ("--seed", "9") if what == "another seed" else ()
        stray = invoke(
            "analyze",
            str(series),
            *QUICK,
            *seed,
            "-q",
            "-o",
            f"{other}.csv",
            "--spectra",
            str(sigma),
        )
        assert stray.code == 0, stray.stderr
        (series / FILE).write_bytes(whole)
    again = analyze(series, "--spectra", str(sigma))
    assert again.code == 0, again.stderr
    assert counted(sigma) == expected
