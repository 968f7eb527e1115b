"""Code that ends the process, and memory that runs out: never a success, never a bug."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.results.read import read_table
from tests.cli.program import QUICK, invoke, run, run_cold
from tests.faults.spoiled import safetensors, tensor
from tests.helpers import NET_CODE, net_weights, save_series

ENDS = {
    "os._exit(0)": "ended the program (os._exit(0))",
    "posix._exit(0)": "ended the program (os._exit(0))",
    "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(9)": "called os._exit(0)",
    "raise KeyboardInterrupt": "ended the program (KeyboardInterrupt)",
    "raise GeneratorExit": "ended the program (GeneratorExit)",
    "sys.exit()": "ended the program (sys.exit(None))",
    "raise RecursionError('deep')": "RecursionError: deep",
    "raise MemoryError": "MemoryError",
    "torch.zeros(10**15)": "can't allocate memory",
}


def model(tmp_path: Path, deed: str) -> tuple[str, ...]:
    """Three checkpoints; at the second the model does the deed."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2, 3):
        bias = torch.full((3,), 10.0 if step == 2 else 0.0)
        torch.save(net_weights(step) | {"a.bias": bias}, folder / f"step_{step}.pt")
    code = NET_CODE.replace(
        "        return self.b",
        f"        if self.a.bias[0] > 9:\n            {deed}\n        return self.b",
    )
    (tmp_path / "net.py").write_text("import os, posix, sys, threading, time\n" + code)
    return "analyze", str(folder), *QUICK, "--model", f"{tmp_path}/net.py:Net"


@pytest.mark.parametrize("deed", ENDS)
def test_the_model_ends_the_process(tmp_path: Path, deed: str) -> None:
    outcome = run(*model(tmp_path, deed), "-o", str(tmp_path / "x.csv"))
    assert outcome.code == 1, outcome.stderr
    assert ENDS[deed] in outcome.stderr.splitlines()[-1]
    if "Memory" in deed or "zeros" in deed:
        assert "Free some memory" in outcome.error
    if "Thread" not in deed:
        assert "1 finished checkpoint is kept" in outcome.stderr


def test_a_process_that_the_model_forks_ends_as_it_likes(tmp_path: Path) -> None:
    deed = "pid = os.fork(); pid or os._exit(7); assert os.waitpid(pid, 0)[1] == 7 << 8"
    assert run(*model(tmp_path, deed), "-o", str(tmp_path / "x.csv")).code == 0


@pytest.mark.parametrize("deed", ["os._exit(0)", "__import__('ctypes').CDLL(None)._exit(0)"])
def test_a_worker_that_the_model_ends_leaves_a_gap(tmp_path: Path, deed: str) -> None:
    """No process can refuse to be ended from C; its parent sees what is missing."""
    words = model(tmp_path, f"'--shard' in sys.argv and {deed}")
    outcome = run("submit", *words[1:], "--workers", "2", "-o", str(tmp_path / "x.csv"))
    assert outcome.code == 1, outcome.stderr
    assert "are missing" in outcome.stderr or "os._exit(0)" in outcome.stderr
    assert not (tmp_path / "x.csv").exists()


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of the address space")
@pytest.mark.parametrize(
    "size",
    [
        2**27,
        2**29,
        *(pytest.param(size, marks=pytest.mark.long) for size in (2**28, 600 * 2**20)),
    ],
)
def test_a_small_address_space(tmp_path: Path, size: int) -> None:
    """What torch needs varies; below it there is one line, above it a table."""
    words = ("analyze", str(save_series(tmp_path / "run")), *QUICK, "-o", str(tmp_path / "x.csv"))
    outcome = run_cold(*words, preexec_fn=limited(size))
    assert outcome.code in {0, 1}, outcome.stderr
    # numpy's OpenBLAS ends the process itself, with a line of its own.
    if outcome.code == 1 and not outcome.stderr.startswith("OpenBLAS error: Memory allocation"):
        assert "Free some memory or raise its limit (ulimit -v" in outcome.error


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of the address space")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_larger_than_the_address_space(tmp_path: Path, suffix: str) -> None:
    """It is not called damaged, and what is finished is kept."""
    folder = save_series(tmp_path / "run", (0, 1))
    words = ("analyze", str(folder), *QUICK, "-o", str(tmp_path / "x.csv"))
    assert invoke(*words).code == 0
    if suffix == "safetensors":
        head = safetensors(
            {
                "0.weight": tensor([2**26, 4], 0, 2**30),
                "0.bias": tensor([2**26], 2**30, 2**30 + 2**28),
            }
        )
        (folder / "step_2.safetensors").write_bytes(head)
        os.truncate(folder / "step_2.safetensors", len(head) + 2**30 + 2**28)
    else:
        state = {"0.weight": torch.empty(2**26, 4), "0.bias": torch.empty(2**26)}  # 1.25 GiB
        with torch.serialization.skip_data():  # a file with a hole
            torch.save(state, folder / "step_2.pt")
    outcome = run_cold(*words, preexec_fn=limited(5 * 2**28))
    assert outcome.code == 1, outcome.stderr
    assert "Is the file complete" not in outcome.error
    assert "Free some memory" in outcome.error
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems need other numbers of files")
@pytest.mark.parametrize(
    ("ending", "mode", "count"),
    [
        ("safetensors", "skip", 8),
        ("pt", "stop", 10),
        # The other two pairs.
        pytest.param("safetensors", "skip", 10, marks=pytest.mark.long),
        pytest.param("pt", "stop", 8, marks=pytest.mark.long),
    ],
)
def test_a_limit_on_open_files(tmp_path: Path, ending: str, mode: str, count: int) -> None:
    """No file is called damaged or skipped: none of the others could be opened, either."""
    (tmp_path / "run").mkdir()
    save = save_file if ending == "safetensors" else torch.save
    save(net_weights(), tmp_path / f"run/step_1.{ending}")
    target = tmp_path / "x.csv"
    words = ("analyze", str(tmp_path / "run"), *QUICK, "--on-error", mode, "-o", str(target))
    assert run(*words).code == 0
    before = target.read_bytes()
    save(net_weights(seed=2), tmp_path / f"run/step_2.{ending}")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    outcome = run_cold(*words, preexec_fn=limit)
    assert outcome.code == 1, outcome.stderr
    assert "Too many open files" in outcome.error
    advice = "Raise the limit on open files (ulimit -n 1024), and run the same command."
    assert outcome.error.endswith(advice)
    assert target.read_bytes() == before


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_half_a_surrogate_pair_in_a_name(tmp_path: Path, ending: str) -> None:
    """Only JSON and Python can write it; it is shown as an escape."""
    state = {f"a\ud800.{key[2:]}": value for key, value in net_weights().items() if key[0] == "a"}
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run/step_1.pt")
    target = tmp_path / f"x.{ending}"
    words = ("analyze", str(tmp_path / "run"), *QUICK, "--spectra", str(tmp_path / "spectra"))
    for _ in range(2):  # the second time from the journal
        outcome = run(*words, "-o", str(target))
        assert outcome.code == 0, outcome.stderr
    assert read_table(target)["layer"].tolist() == ["a\\ud800"]
    outcome = run(
        "rethreshold", str(tmp_path / "spectra"), "--rtol", "0.1", "-o", str(tmp_path / "y.csv")
    )
    assert outcome.code == 0, outcome.stderr
