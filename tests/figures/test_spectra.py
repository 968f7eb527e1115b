import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures import SpectraFile, spectrum, tolerance
from localrank_cli.figures.spectra import medians
from tests.cli.program import invoke
from tests.figures.drawn import assert_readable, lines, texts
from tests.figures.tables import save_spectra


def test_what_is_read(tmp_path: Path) -> None:
    values = np.array([[1.0, 3, 2], [np.nan, np.nan, np.nan], [6, 5, 4]])
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", ("a", "b"), (0, 5), 2, values))
    assert file.runs == ["a", "b"]
    assert file.steps("a") == [0, 5]
    (first, second) = file.read("a", (), [5])
    assert (first.run, first.step, first.layer, second.layer) == ("a", 5, "layer0", "layer1")
    assert first.values.tolist() == [[3, 2, 1], [6, 5, 4]]
    assert second.values.tolist() == [[1.5, 1, 0.5], [3, 2.5, 2]]
    assert [one.layer for one in file.read("b", ("*1",), [0, 5])] == ["layer1", "layer1"]


def test_several_runs_need_a_choice(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", ("a", "b")))
    with pytest.raises(SettingsError, match="several runs: a, b") as caught:
        file.one_run(None)
    assert "--run" in caught.value.advice
    with pytest.raises(SettingsError, match="--run c: not among"):
        file.one_run("c")
    assert file.one_run("b") == "b"


def test_invalid_files_of_spectra(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        SpectraFile(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match="holds no singular values written by localrank"):
        SpectraFile(tmp_path / "junk.safetensors")
    save_file({"weight": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="holds no singular values written by localrank"):
        SpectraFile(tmp_path / "model.safetensors")
    future = json.dumps({"format": 2, "entries": []})
    save_file({"x": np.ones(1)}, tmp_path / "new.safetensors", {"localrank_spectra": future})
    with pytest.raises(DataError, match="has format 2, and this version reads 1"):
        SpectraFile(tmp_path / "new.safetensors")
    save_file({"x": np.ones(1)}, tmp_path / "bad.safetensors", {"localrank_spectra": "{"})
    with pytest.raises(DataError, match="holds no singular values written by localrank"):
        SpectraFile(tmp_path / "bad.safetensors")


def test_nothing_finite(tmp_path: Path) -> None:
    path = save_spectra(tmp_path / "s.safetensors", values=np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="no finite singular values"):
        SpectraFile(path).read("run", (), [0])


def test_counts_are_strictly_greater(tmp_path: Path) -> None:
    values = np.array([[4.0, 2.0, 1.0], [8.0, 0.0, 0.0]])
    path = save_spectra(tmp_path / "s.safetensors", steps=(0,), layers=1, values=values)
    (found,) = SpectraFile(path).read("run", (), [0])
    assert found.ranks([0.5, 1, 2, 4, 8], relative=False).tolist() == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert found.ranks([0.1, 0.25, 0.5, 1], relative=True).tolist() == [2.0, 1.5, 1.0, 0.0]


def test_rank_against_a_tolerance_relative_to_the_whole_jacobian(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "sample_checkpoints/gaussian_teacher"
    words = ("--last", "1", "--layers", "0", "--points", "2", "--output-slice", "40:44", "-q")
    more = ("--sigma-1", "full", "--rtol", "0.1", "--spectra", str(tmp_path / "sigma"))
    assert invoke("analyze", str(sample), *words, *more).code == 0
    _, right = tolerance(SpectraFile(tmp_path / "sigma")).axes
    x, y = (np.array(part) for part in lines(right)["0"])
    # The first layer's Jacobian is its weight.
    weight = load_file(sample / "step_12000.safetensors")["0.weight"].astype(np.float64)
    part, whole = (np.linalg.svd(one, compute_uv=False) for one in (weight[40:44], weight))
    assert y.tolist() == [int((part > place * whole[0]).sum()) for place in x]


def test_medians_replace_zero_with_nan() -> None:
    middle = medians(np.array([[4.0, 1, 0], [2, 1, 0], [3, 0, 0]]))
    assert middle.tolist()[:2] == [3, 1]
    assert np.isnan(middle[2])


def test_rank_against_tolerance(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors"))
    figure = tolerance(file, marks=(("atol", 0.02), ("rtol", 0.5)))
    left, right = figure.axes
    for axes, at in ((left, 0.02), (right, 0.5)):
        assert set(lines(axes)) == {"layer0", "layer1"}
        (marked,) = [line for line in axes.get_lines() if line.get_label() == "_mark"]
        assert np.asarray(marked.get_xdata()).tolist() == [at, at]
        assert axes.get_xscale() == "log"
    x, y = (np.array(part) for part in lines(left)["layer1"])  # values 0.5, 0.05, 0.005, ...
    assert set(y[x < 4e-5]) == {5}
    assert set(y[(x > 0.006) & (x < 0.04)]) == {2}
    assert y[-1] == 0
    assert left.get_xlabel() == "absolute tolerance"
    assert "run: local rank at any tolerance, step 1000" in texts(figure)
    assert_readable(figure)
    with pytest.raises(SettingsError, match="--step 7: no such step"):
        tolerance(file, step=7)


def test_singular_values_over_steps(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors"))
    figure = spectrum(file, marks=(("atol", 0.02),))
    left, right, bar = figure.axes
    assert list(lines(left)) == ["0", "10", "100", "1000"]
    assert lines(left)["10"][0] == [1, 2, 3, 4, 5]
    assert lines(left)["10"][1] == pytest.approx([1, 0.1, 0.01, 1e-3, 1e-4])
    assert lines(right)["10"][1] == pytest.approx([0.5, 0.05, 0.005, 5e-4, 5e-5])
    assert left.get_yscale() == "log"
    assert left.get_ylim() == right.get_ylim()
    assert bar.get_ylabel() == "training step"
    assert {"layer layer0", "layer layer1"} <= set(texts(figure))
    assert_readable(figure)


@pytest.mark.parametrize(
    "layers", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 5)), 12]
)
def test_panels_of_singular_values(tmp_path: Path, layers: int) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", layers=layers))
    figure = spectrum(file, steps=(0, 1000))
    assert len(figure.axes) == layers + 1
    assert_readable(figure)


def test_too_many_panels(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", steps=(0,), layers=13))
    with pytest.raises(SettingsError, match="13 layers, but at most 12") as caught:
        spectrum(file)
    assert "--layers" in caught.value.advice


def test_many_layers_of_tolerances(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", steps=(0,), layers=40))
    figure = tolerance(file)
    assert figure.axes[-1].get_ylabel() == "layer, in order of depth (40)"
    assert_readable(figure)


def test_a_folder_as_analyze_writes_it(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "sample_checkpoints/gaussian_teacher"
    words = ("--points", "4", "--last", "2", "-q", "--spectra", str(tmp_path / "sigma"))
    outcome = invoke("analyze", str(sample), *words)
    assert outcome.code == 0, outcome.stderr
    file = SpectraFile(tmp_path / "sigma")
    assert file.runs == ["gaussian_teacher"]
    last = file.steps("gaussian_teacher")[-1]
    found = file.read("gaussian_teacher", (), [last])
    weight = load_file(sample / f"step_{last}.safetensors")["0.weight"].astype(np.float64)
    expected = np.linalg.svd(weight, compute_uv=False)
    # The first layer's Jacobian is its weight at every point; both are float64 SVDs.
    assert np.allclose(found[0].values, expected, rtol=1e-12)
    assert len(found) == 3
