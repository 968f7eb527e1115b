"""Real processes whose standard streams are pipes, closed, full or gone."""

import csv
import io
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from localrank_cli.results.columns import header
from tests.cli.program import COMMAND, QUICK, invoke, run, run_cold, start_warm
from tests.helpers import NET_CODE, entries, net_weights, save_series


def test_stdout_is_the_csv_and_nothing_else(tmp_path: Path) -> None:
    """Whatever a model prints, in whatever way, in whatever locale."""
    loud = (
        "import os, warnings\nprint('user: print')\nos.write(1, b'user: write\\n')\n"
        "os.system('echo user: child')\nwarnings.warn('user warning')\n"
    )
    folder = tmp_path / "rün [bold]"
    folder.mkdir()
    (folder / "net.py").write_text(loud + NET_CODE)
    torch.save(net_weights(), folder / "step_1.pt")
    words = ("analyze", str(folder), *QUICK, "--model", f"{folder}/net.py:Net")
    outcome = run_cold(*words, env=os.environ | {"LC_ALL": "C"}, encoding="utf-8")
    assert outcome.code == 0, outcome.stderr
    lines = list(csv.reader(io.StringIO(outcome.stdout)))
    assert lines[0] == list(header())
    assert [line[0] for line in lines[1:]] == ["rün [bold]"] * 2
    assert outcome.stdout.endswith("\n")
    assert "\r" not in outcome.stdout
    assert "\x1b" not in outcome.stdout + outcome.stderr
    for word in ("print", "write", "child"):
        assert f"user: {word}\n" in outcome.stderr
    assert "localrank: note: UserWarning: user warning\n" in outcome.stderr


def test_the_command_is_installed_and_the_same(series: Path) -> None:
    script = shutil.which("localrank", path=str(Path(sys.executable).parent))
    assert script is not None, "the package is not installed beside this Python"
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout == run_cold("--help").stdout


def _piped(command: str, *words: str) -> tuple[str, str, int]:
    """Run `localrank WORDS | command` in a shell, and return the status of localrank."""
    shell = f'{{ "$@"; echo "status $?" >&2; }} | {command}'
    result = subprocess.run(
        ["sh", "-c", shell, "sh", *COMMAND, *words], capture_output=True, text=True, check=True
    )
    *stderr, status = result.stderr.splitlines()
    return result.stdout, "\n".join(stderr), int(status.removeprefix("status "))


def test_head_ends_it_silently(series: Path) -> None:
    with start_warm("analyze", str(series), *QUICK, "-q") as process:
        first = process.stdout.readline()
        process.stdout.close()
        assert process.communicate(timeout=120)[1] == ""
    assert (first, process.returncode) == (",".join(header()) + "\n", 141)


def test_help_into_a_closed_pipe() -> None:
    assert _piped("true", "analyze", "--help")[1:] == ("", 141)


def _fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(series: Path) -> None:
    with Path("/dev/full").open("w") as full:
        for outcome in (
            run("analyze", str(series), *QUICK, before=_fill_stdout),
            run_cold("--help", stdout=full),
        ):
            assert outcome.code == 1
            assert "standard output: cannot be written (No space left on device)." in outcome.error
            assert "Traceback" not in outcome.stderr


def test_a_closed_stdout_loses_no_result_without_a_word(series: Path) -> None:
    outcome = run("analyze", str(series), *QUICK, before=partial(os.close, 1))
    assert outcome.code == 1
    assert "standard output: cannot be written (Bad file descriptor)" in outcome.error


def test_files_are_written_with_all_streams_closed(series: Path, tmp_path: Path) -> None:
    """The first file that is opened must not take the place of a stream."""
    code = "import os\nfor number in (0, 1, 2):\n    os.write(number or 1, b'stray')\n"
    (tmp_path / "data.py").write_text(f"{code}import torch\nx = torch.rand(9, 4)\n")
    target = tmp_path / "ranks.csv"
    words = ("--data", f"{tmp_path}/data.py:x", "-o", str(target))
    outcome = run("analyze", str(series), *words, before=partial(os.closerange, 0, 3))
    assert outcome.code == 0
    lines = target.read_text().splitlines()
    assert len(lines) == 7
    assert lines[0] == ",".join(header())
    assert "stray" not in target.read_text()


def test_a_disk_that_is_full_keeps_what_is_finished(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    series = save_series(tmp_path / "run", range(12))
    (tmp_path / "out").mkdir()
    outcome = run(
        "analyze", str(series), *QUICK, "-o", str(tmp_path / "out/ranks.csv"),
        before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (9000, 9000)),
    )  # fmt: skip
    assert outcome.code == 1
    assert "ranks.csv.journal: cannot be written (File too large)" in outcome.error
    assert "finished checkpoints are kept" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    # Whether the table itself had room or not, it is whole, and the run resumes from the journal.
    again = run("analyze", str(series), *QUICK, "-o", str(tmp_path / "out/ranks.csv"))
    assert again.code == 0
    assert "checkpoints are already finished" in again.stderr
    at_once = invoke("analyze", str(series), *QUICK)
    assert (tmp_path / "out/ranks.csv").read_text() == at_once.stdout
    assert entries(tmp_path / "out") == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]


def test_rows_are_there_as_soon_as_they_are_computed(tmp_path: Path) -> None:
    """A reader of the pipe does not wait for the end: the second checkpoint waits for it."""
    go_on = tmp_path / "go on"
    (tmp_path / "net.py").write_text(
        NET_CODE.replace(
            "return self.b",
            "import pathlib, time\n"
            f"        while self.a.bias[0] > 9 and not pathlib.Path({str(go_on)!r}).exists():\n"
            "            time.sleep(0.01)\n"
            "        return self.b",
        )
    )
    torch.save(net_weights(), tmp_path / "step_1.pt")
    torch.save(net_weights() | {"a.bias": torch.full((3,), 10.0)}, tmp_path / "step_2.pt")
    words = ("analyze", str(tmp_path), *QUICK, "--model", f"{tmp_path}/net.py:Net")
    with start_warm(*words) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert [line.split(",")[2] for line in lines] == ["step", "1", "1"]
        go_on.touch()
        rest = process.communicate(timeout=120)[0].splitlines()
    assert [line.split(",")[2] for line in rest] == ["2", "2"]
    assert process.returncode == 0
