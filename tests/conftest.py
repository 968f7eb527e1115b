"""What all tests share: seeds, no clock, one thread, and CUDA tests that skip themselves."""

import gc
import importlib
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent

# Each of these occupies the whole machine (a Slurm with two cores, a browser, `make demo`, signals
# that must arrive in time), so that `pytest -n` gives all of them to one worker.
ONE_AT_A_TIME = (
    "divide",
    "faults/test_long_call.py",
    "report/test_browser.py",
)

# No test fails on a time; the same examples everywhere, so that a failure is never a coincidence.
settings.register_profile("localrank", deadline=None, derandomize=True)
settings.load_profile("localrank")

# The matrices are small: more threads only wait for one another.
torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The other cores belong to the other workers; for the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# torch imports this at the first jvp and warns of its own deprecated jit.script. As warnings are
# errors in the tests, forward mode would seem to be refused by every model.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("torch._decomp.decompositions_for_jvp")


# Their fixtures take many seconds, so that one process runs all of their tests.
ONE_FIXTURE = {
    "test_hf_hostile.py",
    "test_foreign.py",
    "test_packages.py",
    "test_your_checkpoints.py",
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on those that ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(ROOT / place) for place in ONE_AT_A_TIME):
            item.add_marker(pytest.mark.xdist_group("machine"))
        elif item.path.name in ONE_FIXTURE:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_finish() -> None:
    """Freeze the objects of the libraries, which each build of a network would walk through."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


def pytest_configure() -> None:
    """Let Ctrl-C interrupt tests and their children: background jobs of a shell ignore INT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
