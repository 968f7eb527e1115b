import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from localrank_cli.errors import SettingsError
from localrank_cli.machine import (
    keep_freed_memory,
    memory_budget,
    peak_memory,
    pick_device,
    versions,
)


def test_cpu() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "cuda:99999999999999999999"])
def test_a_missing_gpu(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--device {name}: there is no such GPU") as caught:
        pick_device(name)
    assert "--device cpu" in caught.value.advice


def test_memory_is_between_nothing_and_everything() -> None:
    assert 2**20 < memory_budget(torch.device("cpu")) < 2**45
    assert 2**20 < peak_memory() < 2**45


def test_versions() -> None:
    assert set(versions()) >= {"python", "platform", "localrank", "torch", "numpy", "safetensors"}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


FAULTS = """
import resource, sys, torch
from localrank_cli.machine import keep_freed_memory
keep_freed_memory(int(sys.argv[1]))
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.ones(5 * 2**19, dtype=torch.float64) for _ in range(6)]  # 20 MiB each
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="GNU C library"
)
def test_freed_memory_is_kept_unless_the_user_chose_otherwise() -> None:
    def faults(memory: int, **variables: str) -> int:
        words = [sys.executable, "-c", FAULTS, str(memory)]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | variables
        run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return int(run.stdout)

    # How much of the heap's top is free, and so given back, varies with the addresses: at most
    # three tries.
    freed = faults(2**31, MALLOC_TRIM_THRESHOLD_="1000000")  # the user's choice
    assert any(freed > 5 * faults(2**31) for _ in range(3))


@pytest.mark.skipif(sys.platform != "linux", reason="GNU C library")
def test_at_most_an_eighth_of_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    library = SimpleNamespace(mallopt=asked.__setitem__)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
    for memory, kept in ((2**28, 2**25), (2**40, 2**28)):
        keep_freed_memory(memory)
        assert asked[trim_threshold] == kept
