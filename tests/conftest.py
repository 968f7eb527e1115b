"""What all tests share: seeds, no clock, one thread, and CUDA tests that skip themselves."""

import gc
import importlib
import os
import signal
import sys
import warnings
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent

# `pytest -n` gives all tests of a file to one worker, and all of these groups: tests that share one
# Slurm or one browser, and calls of LAPACK that fill a core for seconds; and processes that have
# imported transformers or Lightning, which takes as long as hundreds of tests; and tests that
# compare with the same naive Jacobians, which a process makes once.
WAITING = "machine"
GROUPS = {
    "cli/test_run_slurm.py": WAITING,
    "divide": WAITING,
    "faults/test_long_call.py": WAITING,
    "report/test_browser.py": WAITING,
    "checkpoints/test_packages.py": "transformers",
    "checkpoints/test_written_by_libraries.py": "transformers",
    "cli/test_compress_hf.py": "transformers",
    "families": "transformers",
    "live/test_callbacks.py": "transformers",
    "model/test_hf.py": "transformers",
    "model/test_hf_weights.py": "transformers",
    "options/test_embeddings.py": "transformers",
    "remote/test_pythia.py": "transformers",
    "spectrum/test_metric.py": "naive",
    "spectrum/test_naive.py": "naive",
    "spectrum/test_pooled.py": "positions",
    "spectrum/test_positions.py": "positions",
    "spectrum/test_routes.py": "naive",
    "spectrum/test_scale.py": "naive",
    "spectrum/test_slices.py": "naive",
    "test_real_size.py": "transformers",
    "test_your_checkpoints.py": "transformers",
}

# What needs real processes, servers or a scheduler, by place, with the tests of it that `make
# test` runs too; the others are `make test-processes`. Single tests are marked where they are.
PROCESSES: dict[str, tuple[str, ...]] = {
    "cli/test_left_behind.py": (),
    "cli/test_run_slurm.py": ("test_without_a_time_each_checkpoint_is_a_task",),
    "cli/test_streams.py": ("test_stdout_is_the_csv_and_nothing_else",),
    "cli/test_submit.py": (
        "test_two_workers_give_the_table_of_one_process",
        "test_bad_submissions",
    ),
    "divide/test_slurm.py": (),
    "divide/test_submitted.py": (),
    "divide/test_turns.py": (),
    "faults/test_closed_streams.py": (),
    "faults/test_exits.py": ("test_the_model_ends_the_process",),
    "faults/test_hostile.py": (),
    "faults/test_last_resort.py": ("test_nothing_is_left_behind_by_kill_9",),
    "faults/test_long_call.py": (),
    "live/test_distributed.py": (),
    "model/test_hf_hostile.py": ("test_those_alike_are_cases",),
    "remote/test_hub.py": (
        "test_numbers_are_those_of_a_folder",
        "test_names_that_lead_out_of_the_folder_are_not_followed",
    ),
    "remote/test_s3.py": ("test_the_table_is_that_of_a_folder", "test_keys_that_are_no_names"),
    "report/test_browser.py": (),
    "test_searchpath.py": (),
}

# No test fails on a time; the same examples everywhere, so that a failure is never a coincidence.
settings.register_profile("localrank", deadline=None, derandomize=True)
settings.load_profile("localrank")

# torch.manual_seed keeps the stack of its call three times, for devices that it may have to seed
# later: where there is none, most of its time, and in pytest's deep stacks that of a small test.
if not torch.cuda.is_available():
    for _device in (torch.cuda, torch.xpu, torch.mtia):
        vars(_device)["traceback"] = SimpleNamespace(format_stack=list)

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


def thin_out(items: list[pytest.Item]) -> None:
    """Mark as long the cases of a product that are not needed for `cover`.

    Those kept have every value of every parameter, cover(1), or every pair of values, cover(2).
    They are chosen greedily, in the order of the cases, so they are the same everywhere.
    """
    tests: dict[object, list[tuple[pytest.Item, int]]] = {}
    for item in items:
        mark = item.get_closest_marker("cover")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            tests.setdefault(test, []).append((item, mark.args[0]))
    for cases in tests.values():
        parts = [
            {frozenset(part) for part in combinations(_values(item), size)} for item, size in cases
        ]
        left = set().union(*parts)
        while left:
            best = max(range(len(parts)), key=lambda index: len(parts[index] & left))
            left -= parts[best]
            parts[best] = set()
        for (item, _), rest in zip(cases, parts, strict=True):
            if rest:
                item.add_marker("long")


def _values(item: pytest.Item) -> list[tuple[str, object]]:
    """Return the parameters of a case, each with its value, or with what is that object alone.

    Not with its number in `indices`: pytest 9.2 counts the cases there, not the values.
    """
    return [
        (name, value if isinstance(value, str | int | float | None) else (id(value),))
        for name, value in sorted(vars(item)["callspec"].params.items())
    ]


def group(nodeid: str) -> str:
    """Return what is run by one worker: a file, whose fixtures are made once, or several."""
    return _group(nodeid.partition("::")[0])


@cache
def _group(file: str) -> str:
    path = (ROOT.parent / file).relative_to(ROOT)
    return next((name for place, name in GROUPS.items() if path.is_relative_to(place)), file)


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the rest of each product to test-long, and put first what takes long.

    So no worker is left with that at the end.
    """
    thin_out(items)
    for item in items:
        place = item.path.relative_to(ROOT).as_posix()
        name = item.name.partition("[")[0]
        if name not in PROCESSES.get(place, (name,)):
            item.add_marker("processes")
        is_long = any(map(item.get_closest_marker, ("long", "fuzz")))
        if is_long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
    groups = [group(item.nodeid) for item in items]
    slow = Counter(
        name for name, item in zip(groups, items, strict=True) if item.get_closest_marker("slow")
    )
    size = Counter(groups)
    # Sorted by the group too, which keeps its tests together.
    ranks = {name: (name not in GROUPS.values(), -slow[name], -size[name], name) for name in size}
    order = zip((ranks[name] for name in groups), range(len(items)), items, strict=True)
    items[:] = [item for *_, item in sorted(order)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Group by place: marks of xdist 3.8 are lost in the ids of pytest 9.2, without a word."""
    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False  # it puts first the groups with the most tests
    base: Any = importlib.import_module("xdist.scheduler").LoadScopeScheduling

    class Scheduling(base):  # type: ignore[misc]  # xdist is imported where it is used
        """A worker for each core, and one more as long as tests wait more than they compute."""

        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

        def _reschedule(self, node: Any) -> None:
            if WAITING in self.assigned_work[node] and self.numnodes > _n_cores():
                node.shutdown()  # when it has run what it was given
            else:
                super()._reschedule(node)

        def remove_node(self, node: Any) -> str | None:
            """Leave to others what a worker that crashed has not run; return what it was at.

            xdist 3.8 hands out the groups that it had finished too, and who is given one of those
            waits for ever; and the test of the crash again, which would end the next worker.
            """
            units = self.assigned_work.pop(node)
            left = [(unit, test) for unit in units.values() for test in unit if not unit[test]]
            if not left:
                return None
            unit, crashed = left[0]
            unit[crashed] = True
            self.workqueue.update(
                {name: unit for name, unit in units.items() if not all(unit.values())}
            )
            for other in self.assigned_work:
                self._reschedule(other)
            return str(crashed)

    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores, at first: see `Scheduling`."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else _n_cores() + 1


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name at once what failed, for a run that is cut off before its summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        sys.stderr.write(f"\nFAILED {report.nodeid} ({report.when})\n{report.longrepr}\n")


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
