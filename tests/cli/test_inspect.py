"""`localrank inspect`: a report of what analyze would do, without writing anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import entries, renamed, save_series, weights


def inspect(*words: str) -> Outcome:
    return invoke("inspect", *words, *QUICK)


def parsed(*words: str) -> dict[str, Any]:
    outcome = inspect(*words, "--json")
    assert outcome.code in {0, 3}, outcome.stderr
    (series,) = json.loads(outcome.stdout)["series"]
    return dict(series)


def test_for_a_person(series: Path) -> None:
    outcome = inspect(str(series))
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0] == f"run ({series})"
    assert "  checkpoints  3: steps 0, 5, 10" in lines
    assert "  source       the input: 1 point x 4 features, 4 entries varied" in lines
    table = [line.split() for line in lines if line.endswith(("fits", "yes"))]
    assert table[0] == ["layer", "output", "Jacobian", "needs", "passes", "time", "fits"]
    # 40 s^2 + 8 s bytes of the shorter side s; a chain takes no passes.
    assert table[1][:8] == ["0", "3", "3", "x", "4", "384", "bytes", "-"]
    assert table[2][:8] == ["2", "2", "2", "x", "4", "176", "bytes", "-"]
    assert "  route        chain of Linear layers and elementwise operations" in lines
    assert "  points       5; tolerances atol=0.01" in lines
    assert any(line.startswith("  time         about ") for line in lines)
    assert entries(series.parent) == ["run"]


def test_for_a_program(series: Path) -> None:
    found = parsed(str(series), "--memory", "1GiB", "--rtol", "0.1")
    assert [one["step"] for one in found["checkpoints"]] == [0, 5, 10]
    line = found["layers"][0]
    assert line.pop("seconds") > 0
    assert line == {
        "layer": "0", "module": "Linear", "wrt": "", "axes": "1 point x 3 features", "grid": [],
        "n_features": 3, "n_out": 3, "n_in": 4, "max_rank": 3, "n_jacobians": 1,
        "jacobian_bytes": 96, "needed_bytes": 384, "fits": True, "mode": "chain", "passes": 0,
    }  # fmt: skip
    assert found["ways_out"] == []
    assert found["checkpoint_seconds"] < found["seconds"]
    assert found["memory"] == 2**30
    assert found["n_points"] == 5
    assert found["tolerances"] == ["rtol=0.1"]
    assert found["seconds"] > 0


def test_without_the_time(series: Path) -> None:
    found = parsed(str(series), "--no-time")
    assert (found["seconds"], found["routes"]) == (None, [])


def test_what_does_not_fit_is_shown_with_what_does(tmp_path: Path) -> None:
    save_file(weights(700, 700, 3), tmp_path / "step_1.safetensors")
    words = (str(tmp_path), "--data", "normal:700", "--points", "2", "--memory", "16MiB")
    outcome = invoke("inspect", *words, "--no-time", "--device", "cpu")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert max(len(line) for line in lines if "700 x 700" in line) <= 80
    # 40 * 700^2 + 8 * 700 bytes; the first layer takes 700 directions, the last one 3 rows.
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.endswith((" yes", " no"))}
    assert rows["0"] == ["700", "700", "x", "700", "18.7", "MiB", "700", "-", "no"]
    assert rows["2"] == ["3", "3", "x", "700", "384", "bytes", "3", "-", "yes"]
    assert "  too large    1 of 2 do not fit in 16 MiB; each of these does:" in lines
    fits = [line.split(maxsplit=1)[1] for line in lines if line.startswith("  fits")]
    assert fits[0] == "--memory 19MiB: 2 Jacobians, the largest 700 x 700, 18.7 MiB"
    assert fits[1] == "--exclude 0: one Jacobian, 3 x 700, 384 bytes"


def test_what_was_unwrapped_and_stripped(tmp_path: Path) -> None:
    save_file(renamed(weights(), "module."), tmp_path / "step_1.safetensors")
    assert parsed(str(tmp_path))["checkpoints"][0]["taken_off"] == "prefix 'module.'"


def test_all_bad_checkpoints_are_reported_at_once(series: Path) -> None:
    (series / "step_7.safetensors").write_bytes(b"torn")
    save_file(weights(4, 5, 2), series / "step_8.safetensors")
    outcome = inspect(str(series))
    assert outcome.code == 3
    assert outcome.stdout.count("  left out") == 2
    problems = [one["problem"] for one in parsed(str(series))["checkpoints"] if one["problem"]]
    assert len(problems) == 2
    assert "step_7.safetensors" in problems[0]
    assert "step_8.safetensors (step 8)" in problems[1]


def test_a_part_of_a_series(series: Path) -> None:
    found = parsed(str(series), "--steps", "5:")
    assert [one["step"] for one in found["checkpoints"]] == [5, 10]


def test_two_series(series: Path, tmp_path: Path) -> None:
    other = save_series(tmp_path / "other", (1,))
    outcome = inspect(str(series), str(other), "--json")
    assert [one["run"] for one in json.loads(outcome.stdout)["series"]] == ["other", "run"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nope",), 1, "there is no such file or folder"),
        (("RUN", "--atol", "0"), 2, "expected more than 0"),
        (("RUN", "--layers", "nope"), 1, "nope"),
        (("RUN", "--memory", "1B"), 2, "too little"),
    ],
)
def test_bad_input(series: Path, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = inspect(*(str(series) if word == "RUN" else word for word in words))
    assert outcome.code == code
    assert message in outcome.error


def test_the_estimate_is_of_the_right_order(tmp_path: Path) -> None:
    """Compare two series, whatever the speed of the machine."""
    few = parsed(str(save_series(tmp_path / "few", range(2))))["seconds"]
    many = parsed(str(save_series(tmp_path / "many", range(40))))["seconds"]
    assert many > few
