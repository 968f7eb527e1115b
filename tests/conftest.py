"""What all tests share: seeds, no clock, and CUDA tests that skip themselves."""

import importlib
import signal
import warnings

import pytest
import torch
from hypothesis import settings

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


def pytest_configure() -> None:
    """Hears Ctrl-C: a shell's background job starts with INT ignored, and children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
