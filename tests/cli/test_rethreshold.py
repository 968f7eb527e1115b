"""Kept singular values give the numbers of a new analysis at other tolerances."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from localrank_cli.results.lock import OutputLock
from localrank_cli.results.spectra import read_spectra
from tests.cli.program import QUICK, Outcome, invoke, rows
from tests.helpers import entries, save_series, weights

OTHER = ("--atol", "0.3", "--rtol", "0.1", "--rtol", "eps")
EXACT = ("n_points", "n_failed", "local_rank", "rank_min", "rank_max", "near_tol", "n_undecided")


@pytest.fixture
def kept(series: Path, tmp_path: Path) -> Path:
    (series / "localrank.toml").write_text("[columns]\nbeta = 2.5\n")
    state = {key: torch.full_like(value, float("nan")) for key, value in weights().items()}
    save_file(state, series / "step_7.safetensors")
    outcome = invoke("analyze", str(series), *QUICK, "--spectra", str(tmp_path / "spectra"))
    assert outcome.code == 3
    return tmp_path / "spectra"


def test_the_same_as_a_new_analysis(series: Path, kept: Path) -> None:
    expected = rows(invoke("analyze", str(series), *QUICK, *OTHER).stdout)
    outcome = invoke("rethreshold", str(kept), *OTHER)
    assert outcome.code == 3  # step 7 is not finite, as in the analysis
    found = rows(outcome.stdout)
    assert list(found[0]) == list(expected[0])
    assert len(found) == len(expected) == 4 * 2 * 3
    for one, other in zip(found, expected, strict=True):
        for name, cell in one.items():
            if cell != other[name]:
                assert name not in EXACT
                # The contract: other measures agree to 1e-6.
                assert float(cell) == pytest.approx(float(other[name]), rel=1e-6), name


def test_another_noise(series: Path, kept: Path) -> None:
    expected = rows(invoke("analyze", str(series), *QUICK, "--noise", "0.1").stdout)
    found = rows(invoke("rethreshold", str(kept), "--noise", "0.1").stdout)
    for one, other in zip(found, expected, strict=True):
        cells = one["gaussian_information"], other["gaussian_information"]
        assert cells == ("", "") or float(cells[0]) == pytest.approx(float(cells[1]), rel=1e-6)


def test_a_file_with_its_manifest(kept: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.csv"
    outcome = invoke("rethreshold", str(kept), "--atol", "0.3", "-o", str(target))
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.stderr == f"localrank: note: wrote {target} and new.csv.json\n"
    assert target.read_text() == invoke("rethreshold", str(kept), "--atol", "0.3").stdout
    manifest = json.loads(Path(f"{target}.json").read_text())
    assert manifest["series"][0]["tolerances"] == ["atol=0.3"]
    assert invoke("rethreshold", str(kept), "-o", str(target)).code == 1
    again = invoke("rethreshold", str(kept), "-o", str(target), "--overwrite", "-q")
    assert (again.code, again.stderr) == (3, "")


def test_a_table_that_is_being_written_is_left_alone(kept: Path, tmp_path: Path) -> None:
    target = tmp_path / "r.csv"
    with OutputLock(target):
        outcome = invoke("rethreshold", str(kept), "-o", str(target), "--overwrite")
    assert outcome.code == 1
    assert "is writing it" in outcome.error
    assert not target.exists()


def test_without_what_is_not_finite_it_is_done(kept: Path) -> None:
    (kept / "run/step_7.safetensors").unlink()
    assert invoke("rethreshold", str(kept)).code == 0


def test_what_is_kept(kept: Path) -> None:
    file = read_spectra(kept / "run/step_5.safetensors")
    assert [layer.facts.layer for layer in file.layers] == ["0", "2"]
    assert [tuple(layer.values.shape) for layer in file.layers] == [(5, 3), (5, 2)]
    assert file.settings["point_indices"] == [0, 1, 2, 3, 4]
    first = weights(seed=5)["0.weight"].double()
    # Layer 1's Jacobian is its weight; the last digits are the SVD's.
    assert torch.allclose(file.layers[0].values[0], torch.linalg.svdvals(first), rtol=1e-13)


def test_resuming_computes_checkpoints_without_spectra(tmp_path: Path) -> None:
    series, spectra = save_series(tmp_path / "run"), tmp_path / "spectra"
    words = ("analyze", str(series), *QUICK, "-o", str(tmp_path / "a.csv"))
    assert invoke(*words).code == 0
    assert invoke(*words, "--spectra", str(spectra)).code == 0
    assert len(list(spectra.rglob("*.safetensors"))) == 3
    (spectra / "run/step_5.safetensors").unlink()
    again = invoke(*words, "--spectra", str(spectra))
    assert "resuming: 2 of 3" in again.stderr
    assert len(list(spectra.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nope",), 1, "there is no such folder"),
        ((".",), 1, "holds no singular values"),
        (("kept", "--atol", "0"), 2, "expected more than 0"),
        (("kept", "--rtol", "1e-17"), 1, "below the rounding error of the method"),
        (("kept", "-o", "a.xlsx"), 2, "is not a table format"),
        (("kept", "-o", "no/a.csv"), 1, "cannot be written"),
    ],
)
def test_bad_input(
    kept: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    places = {"kept": str(kept), ".": str(tmp_path / "run"), "no/a.csv": str(tmp_path / "no/a.csv")}
    (tmp_path / "run/step_0.safetensors").rename(tmp_path / "elsewhere")
    for path in (tmp_path / "run").glob("step_*"):
        path.unlink()
    outcome = invoke("rethreshold", *(places.get(word, word) for word in words))
    assert outcome.code == code
    assert message in outcome.error


def test_damaged_spectra(kept: Path) -> None:
    path = kept / "run/step_5.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    outcome = invoke("rethreshold", str(kept))
    assert outcome.code == 1
    assert "step_5.safetensors: holds no singular values written by localrank" in outcome.error


def test_a_place_for_spectra_that_is_a_file(series: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outcome = invoke("analyze", str(series), *QUICK, "--spectra", str(tmp_path / "file"))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "--spectra names a folder" in outcome.error


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A table of analyze that rethreshold wrote over, with a series that can still grow."""
    series, target = save_series(tmp_path / "run"), tmp_path / "r.csv"
    words = ("--spectra", str(tmp_path / "spectra"), "-o", str(target), "-q")
    assert invoke("analyze", str(series), *QUICK, *words).code == 0
    other = ("--atol", "0.3", "--rtol", "eps", "-o", str(target), "--overwrite", "-q")
    assert invoke("rethreshold", str(tmp_path / "spectra"), *other).code == 0
    return target


def analysed_at(tolerance: str, folder: Path, *words: str) -> Outcome:
    return invoke("analyze", str(folder / "run"), *QUICK, "--atol", tolerance, *words)


def test_merge_of_what_was_counted_again(counted: Path, tmp_path: Path) -> None:
    merged = tmp_path / "m.csv"
    assert invoke("merge", str(counted), "-o", str(merged)).code == 0
    assert merged.read_bytes() == counted.read_bytes()
    assert rows(counted.read_text()) == rows(analysed_at("0.3", tmp_path, "--rtol", "eps").stdout)


def test_the_manifest_describes_what_was_counted_again(counted: Path, tmp_path: Path) -> None:
    manifest = json.loads(Path(f"{counted}.json").read_text())
    assert manifest["complete"]
    assert manifest["spectra"] == str(tmp_path / "spectra")
    assert [one["tolerances"] for one in manifest["series"]] == [["atol=0.3", "rtol=eps"]]
    assert [one["step"] for one in manifest["checkpoints"]] == [0, 5, 10]
    assert all(len(one["sha256_of_tensors"]) == 64 for one in manifest["checkpoints"])


def test_analyze_does_not_resume_from_a_discarded_journal(counted: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.glob("r.csv*")}
    outcome = analysed_at("0.01", tmp_path, "-o", str(counted))
    assert outcome.code == 1
    assert (
        "r.csv.journal: was started with different settings for 'run': tolerances" in outcome.error
    )
    assert {path: path.read_bytes() for path in tmp_path.glob("r.csv*")} == before
    assert analysed_at("0.01", tmp_path, "-o", str(counted), "--overwrite").code == 0


def test_analyze_at_the_same_tolerances_resumes(counted: Path, tmp_path: Path) -> None:
    save_series(tmp_path / "run", steps=(0, 5, 10, 15))
    outcome = analysed_at("0.3", tmp_path, "--rtol", "eps", "-o", str(counted))
    assert outcome.code == 0
    assert "resuming: 3 of 4 checkpoints are already finished" in outcome.stderr
    assert rows(counted.read_text()) == rows(analysed_at("0.3", tmp_path, "--rtol", "eps").stdout)
    save_file(weights(seed=99), tmp_path / "run/step_5.safetensors")
    outcome = analysed_at("0.3", tmp_path, "--rtol", "eps", "-o", str(counted))
    assert "weights changed" in outcome.error


def test_spectra_of_an_older_version_do_not_name_their_weights(kept: Path, tmp_path: Path) -> None:
    for path in kept.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            about = json.loads(file.metadata()["localrank_spectra"])
        del about["facts"]
        save_file(tensors, path, {"localrank_spectra": json.dumps(about)})
    target = tmp_path / "old.csv"
    assert invoke("rethreshold", str(kept), "-o", str(target), "-q").code == 3
    assert invoke("merge", str(target), str(target), "-o", str(tmp_path / "m.csv")).code == 3
    outcome = invoke("analyze", str(tmp_path / "run"), *QUICK, "-o", str(target))
    assert "does not say which weights step_0.safetensors had" in outcome.error


@pytest.mark.parametrize("left", ["r.csv", "r.csv.json", "r.csv.journal"])
def test_without_overwrite_nothing_is_touched(kept: Path, tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("mine")
    outcome = invoke("rethreshold", str(kept), "-o", str(tmp_path / "r.csv"))
    assert outcome.code == 1
    assert outcome.error.startswith(f"{tmp_path / left}: already exists. Give another name")
    assert [name for name in entries(tmp_path) if name.startswith("r.csv")] == [left]
    words = ("-o", str(tmp_path / "r.csv"), "--overwrite", "-q")
    assert invoke("rethreshold", str(kept), *words).code == 3
    assert invoke("merge", str(tmp_path / "r.csv"), "-o", str(tmp_path / "m.csv")).code == 3


def test_what_another_process_writes_is_left_to_it(counted: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.glob("r.csv*")}
    with OutputLock(counted):
        words = ("-o", str(counted), "--overwrite")
        outcome = invoke("rethreshold", str(tmp_path / "spectra"), *words)
    assert outcome.code == 1
    assert "r.csv: process" in outcome.error
    assert "is writing it" in outcome.error
    assert {path: path.read_bytes() for path in tmp_path.glob("r.csv*")} == before


def test_damaged_spectra_discard_nothing(counted: Path, tmp_path: Path) -> None:
    path = tmp_path / "spectra/run/step_10.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in tmp_path.glob("*r.csv*")}
    words = ("-o", str(counted), "--overwrite")
    assert invoke("rethreshold", str(tmp_path / "spectra"), *words).code == 1
    assert {path: path.read_bytes() for path in tmp_path.glob("*r.csv*")} == before


def test_singular_values_of_two_analyses_are_not_mixed(tmp_path: Path) -> None:
    series, spectra = save_series(tmp_path / "run"), ("--spectra", str(tmp_path / "spectra"))
    assert invoke("analyze", str(series), *QUICK, *spectra).code == 0
    assert invoke("analyze", str(series), *QUICK, *spectra, "--last", "1", "--seed", "1").code == 0
    outcome = invoke("rethreshold", str(tmp_path / "spectra"))
    assert outcome.code == 1
    assert (
        "step_10.safetensors: was kept with a different seed from the files of earlier"
        in outcome.error
    )
