"""What all tests share: seeds, no clock, one thread, and CUDA tests that skip themselves."""

import gc
import importlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent

# Tests that share one Slurm or one browser, or a fixture that takes many seconds, and calls of
# LAPACK that fill a core for seconds: `pytest -n` gives all tests of a group to one worker.
GROUPS = {
    "divide": "machine",
    "faults/test_long_call.py": "machine",
    "report/test_browser.py": "machine",
    "checkpoints/test_foreign.py": "foreign",
    "checkpoints/test_packages.py": "packages",
    "test_your_checkpoints.py": "series",
    "spectrum/test_positions.py": "positions",
    "cli/test_interrupts.py": "interrupts",
    "model/test_hf_hostile.py": "hostile",
}

# No test fails on a time; the same examples everywhere, so that a failure is never a coincidence.
settings.register_profile("localrank", deadline=None, derandomize=True)
settings.load_profile("localrank")

# The matrices are small: more threads only wait for one another.
torch.set_num_threads(1)

# torch imports this at the first jvp and warns of its own deprecated jit.script. As warnings are
# errors in the tests, forward mode would seem to be refused by every model.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("torch._decomp.decompositions_for_jvp")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on those that ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # xdist hands out the largest group first, and what is in none in this order: what takes long
    # comes first, so that no worker is left with it at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Group by place: marks of xdist 3.8 are lost in the ids of pytest 9.2, without a word."""
    if config.getvalue("dist") != "loadgroup":
        return None

    def group(nodeid: str) -> str:
        file = (ROOT.parent / nodeid.partition("::")[0]).relative_to(ROOT)
        found = (group for place, group in GROUPS.items() if file.is_relative_to(place))
        return next(found, nodeid)

    scheduler = importlib.import_module("xdist.scheduler").LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores: the worker with the tests of Slurm waits most of the time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ or not hasattr(os, "sched_getaffinity"):
        return None  # xdist knows
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    freeze()


def freeze() -> None:
    """Freeze the objects of the libraries, which each build of a network would walk through."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Freeze what the tests of other files have imported since."""
    freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


def pytest_configure() -> None:
    gc.disable()  # until all tests are collected: nothing that is made until then is garbage
    # pytest's translations of the tests are kept, whatever the environment says of bytecode.
    sys.dont_write_bytecode = False
    # Ctrl-C interrupts tests and their children, whereas background jobs of a shell ignore INT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "transformers is not installed: pip install transformers"
        return pytest.importorskip("transformers", reason=reason)
