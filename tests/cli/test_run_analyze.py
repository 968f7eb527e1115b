import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.results.columns import header
from tests.cli.program import QUICK, invoke, rows
from tests.helpers import NET_CODE, entries, net_weights, save_series, weights


def test_csv_in_a_pipe(series: Path) -> None:
    outcome = invoke("analyze", str(series), *QUICK)
    assert outcome.code == 0
    table = rows(outcome.stdout)
    assert outcome.stdout.splitlines()[0] == ",".join(header())
    assert [(row["step"], row["layer"]) for row in table] == [
        (step, layer) for step in ("0", "5", "10") for layer in ("0", "2")
    ]
    assert {row["run"] for row in table} == {"run"}
    assert {(row["status"], row["message"]) for row in table} == {("ok", "")}
    assert outcome.stderr == (
        "localrank: note: no --model: read as a plain MLP 4-3-2 with relu between its layers\n"
    )


def test_a_dash_is_stdout_too(series: Path) -> None:
    assert invoke("analyze", str(series), *QUICK, "-o", "-") == invoke(
        "analyze", str(series), *QUICK
    )


def test_quiet_prints_no_notes(series: Path) -> None:
    assert invoke("analyze", str(series), *QUICK, "-q").stderr == ""


def test_verbose_prints_layers_and_routes(series: Path) -> None:
    stderr = invoke("analyze", str(series), *QUICK, "-v").stderr
    assert "localrank: run: 3 checkpoints, 5 points, cpu, layers 0, 2\n" in stderr
    assert "localrank: run step 10: " in stderr


@pytest.mark.parametrize("name", ["ranks.csv", "ranks.tsv", "ranks.jsonl", "RANKS.CSV"])
def test_files(series: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    outcome = invoke("analyze", str(series), *QUICK, "-o", str(target))
    assert (outcome.code, outcome.stdout) == (0, "")
    assert entries(tmp_path) == sorted([name, f"{name}.json", f"{name}.journal", "run"])
    assert outcome.stderr.splitlines()[-1] == f"localrank: note: wrote {target} and {name}.json"
    expected = invoke("analyze", str(series), *QUICK).stdout
    text = target.read_bytes().decode()
    if name.lower().endswith(".csv"):
        assert text == expected
    elif name.endswith(".tsv"):
        assert list(csv.reader(io.StringIO(text), delimiter="\t")) == list(
            csv.reader(io.StringIO(expected))
        )
    else:
        rows = [json.loads(line) for line in text.splitlines()]
        assert [tuple(row) for row in rows] == [header()] * 6
        assert rows[0]["step"] == 0
        assert isinstance(rows[0]["local_rank"], float)
    manifest = json.loads((tmp_path / f"{name}.json").read_text())
    assert manifest["series"][0]["run"] == "run"
    assert [checkpoint["step"] for checkpoint in manifest["checkpoints"]] == [0, 5, 10]


def test_two_runs_are_equal_to_the_letter(series: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        invoke("analyze", str(series), *QUICK, "-o", str(tmp_path / name))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("there", ["ranks.csv", "ranks.csv.json"])
def test_an_existing_output_is_refused(series: Path, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    outcome = invoke("analyze", str(series), *QUICK, "-o", str(tmp_path / "ranks.csv"))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert f"{there}: already exists, but there is no journal next to it" in outcome.error
    assert (tmp_path / there).read_text() == "precious"
    assert entries(tmp_path) == sorted([there, "run"])


def test_a_place_that_is_not_there_is_known_before_any_work(series: Path, tmp_path: Path) -> None:
    outcome = invoke("analyze", str(series / "nope"), "-o", str(tmp_path / "no/ranks.csv"))
    assert outcome.code == 1
    assert "no/ranks.csv: cannot be written (No such file or directory)" in outcome.error


def test_an_error_in_the_middle_keeps_what_is_finished(tmp_path: Path) -> None:
    """The third checkpoint's tied weights differ, which no header shows."""
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(4, 4)\n"
        "        self.b = torch.nn.Linear(4, 4)\n"
        "        self.b.weight = self.a.weight\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x))\n"
    )
    bias = {"a.bias": torch.ones(4), "b.bias": torch.ones(4)}
    for step in (1, 2, 3):
        state = {"a.weight": torch.eye(4), "b.weight": torch.eye(4) * (2 if step == 3 else 1)}
        torch.save(state | bias, tmp_path / f"step_{step}.pt")
    words = ("analyze", str(tmp_path), *QUICK, "--model", f"{tmp_path}/net.py:Tied")
    outcome = invoke(*words, "-o", str(tmp_path / "ranks.csv"))
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "step_3.pt (step 3): a.weight and b.weight are one parameter" in outcome.error
    kept = "2 finished checkpoints are kept, 1 is left: rerun the same command to resume"
    assert kept in outcome.stderr
    table = rows(tmp_path / "ranks.csv")
    assert [row["step"] for row in table] == ["1", "1", "2", "2"]
    assert json.loads((tmp_path / "ranks.csv.json").read_text())["complete"] is False
    assert len(invoke(*words).stdout.splitlines()) == 5  # in a pipe, what was finished is there


def test_non_finite_values_are_3_with_whole_output(series: Path, tmp_path: Path) -> None:
    state = {key: torch.full_like(value, float("nan")) for key, value in weights().items()}
    save_file(state, series / "step_7.safetensors")
    outcome = invoke("analyze", str(series), *QUICK, "-o", str(tmp_path / "ranks.csv"))
    assert outcome.code == 3
    assert (
        "localrank: warning: run: step_7.safetensors (step 7): non-finite values in 0, 2"
        in outcome.stderr.splitlines()
    )
    table = rows(tmp_path / "ranks.csv")
    broken = [row for row in table if row["step"] == "7"]
    assert [(row["status"], row["local_rank"], row["n_failed"]) for row in broken] == [
        ("nonfinite", "", "5")
    ] * 2
    assert all(row["status"] == "ok" for row in table if row["step"] != "7")
    assert len(table) == 8


def test_prints_of_a_model_go_to_stderr(tmp_path: Path) -> None:
    head = "def forward(self, x):"
    code = NET_CODE.replace(head, f"{head}\n        print('user: forward')")
    (tmp_path / "net.py").write_text(f"print('user: imported')\n{code}")
    torch.save(net_weights(), tmp_path / "step_1.pt")
    outcome = invoke("analyze", str(tmp_path), *QUICK, "--model", f"{tmp_path}/net.py:Net")
    assert outcome.code == 0
    assert len(list(csv.reader(io.StringIO(outcome.stdout)))) == 3
    assert "user:" not in outcome.stdout
    assert "user: imported\n" in outcome.stderr
    assert "user: forward\n" in outcome.stderr


class Hidden:
    """A state dict that only code can give."""

    def __reduce__(self) -> Any:
        return weights, ()


def test_a_trusted_pickle(series: Path) -> None:
    torch.save(Hidden(), series / "step_7.pt")
    assert invoke("analyze", str(series), *QUICK).code == 1
    outcome = invoke("analyze", str(series), *QUICK, "--trust-pickle")
    assert outcome.code == 0
    assert len(outcome.stdout.splitlines()) == 9


def test_a_models_code_may_change_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("import os\nos.chdir('/')\n" + NET_CODE)
    torch.save(net_weights(), tmp_path / "step_1.pt")
    torch.save(torch.ones(9, 4), tmp_path / "inputs.pt")
    monkeypatch.chdir(tmp_path)
    words = ("--model", "net.py:Net", "--data", "inputs.pt", "-o", "ranks.csv")
    outcome = invoke("analyze", ".", *words)
    assert outcome.code == 0, outcome.stderr
    assert {"ranks.csv", "ranks.csv.json"} <= set(entries(tmp_path))


def test_constant_columns(series: Path, tmp_path: Path) -> None:
    other = save_series(tmp_path / "other", (1,))
    (series / "localrank.toml").write_text("[columns]\nbeta = 2.5\nkind = 'a,b'\n")
    outcome = invoke("analyze", str(series), str(other), *QUICK)
    table = rows(outcome.stdout)
    assert list(table[0])[-3:] == ["message", "beta", "kind"]
    assert [(row["run"], row["beta"], row["kind"]) for row in table] == [("other", "", "")] * 2 + [
        ("run", "2.5", "a,b")
    ] * 6


def test_settings_of_the_folder_need_no_flag(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.rand(20, 4), series / "inputs.pt")
    (series / "localrank.toml").write_text(
        "data = 'inputs.pt'\npoints = 6\natol = [0.5, 0.1]\nlayers = '2'\nactivation = 'tanh'\n"
    )
    monkeypatch.chdir("/")  # paths are those of the folder
    table = rows(invoke("analyze", str(series)).stdout)
    assert len(table) == 6
    assert {row["n_points"] for row in table} == {"6"}
    assert {row["layer"] for row in table} == {"2"}
    assert [row["tolerance"] for row in table[:2]] == ["atol=0.5", "atol=0.1"]
    assert not {"inputs.pt"} & {row["checkpoint"] for row in table}


def test_a_run_with_a_strange_name(tmp_path: Path) -> None:
    folder = save_series(tmp_path / 'run[seed=3] ,"x" [bold]', (1,))
    outcome = invoke("analyze", str(folder), *QUICK)
    table = rows(outcome.stdout)
    assert table[0]["run"] == 'run[seed=3] ,"x" [bold]'
