"""Measure a network while it is trained, from any loop."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from localrank_cli.errors import (
    LocalrankError,
    OutputError,
    SettingsError,
    UsageError,
    cause,
    duration,
    printable,
)
from localrank_cli.live.group import Group, gathered, is_sharded, refuse_partitioned
from localrank_cli.live.measure import (
    Network,
    check_setting,
    live_options,
    plan_network,
    plan_weights,
    record_of,
    step_of,
)
from localrank_cli.live.process import process_unchanged
from localrank_cli.live.table import MonitorTable
from localrank_cli.live.turns import LOCK
from localrank_cli.options.parse import LOG
from localrank_cli.options.read import (
    PYTHON,
    ArgumentError,
    check_keywords,
    described,
    read_options,
    signature_of,
)
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions, MonitorOptions
from localrank_cli.results.columns import Row, pair_names
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.results.tags import tags
from localrank_cli.run.estimate import long_time
from localrank_cli.run.plan import Plan

if TYPE_CHECKING:  # importing pandas is slow
    import pandas as pd

_logger = logging.getLogger("localrank")

_OWN = {one.name: one for one in options_of(MonitorOptions) if one.name != "output"}
_LIVE = [one for one in options_of(AnalyzeOptions) if one.in_live and one.name != "data"]
_OFFERED = {**_OWN, **{one.name: one for one in _LIVE}}


class Monitor:
    """Measure the local rank of every layer at some steps of a training run.

    Call it with the network and the step after each step, on every rank if training is distributed.
    Training is not affected: the network is copied, and the state of the process is restored. A
    step that cannot be measured gives a warning and a row that says why. The options are those of
    `local_rank`, plus the following.

    Args:
        output: A .csv, .tsv, .jsonl or .parquet file. A resumed training run adds to it.
        data: A tensor, an array, or any other data that `analyze` takes; or a Dataset or
            DataLoader, from which the first points are taken in order.
        ema: A network or state dict with averaged weights, to measure in place of the live ones.
        **options: See below.

    Raises:
        LocalrankError: If the settings are at fault, or differ from those of the table.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        data: object = None,
        *,
        ema: Network | None = None,
        **options: Any,
    ) -> None:
        check_keywords("Monitor", options, _OFFERED)
        if not isinstance(output, str | os.PathLike):
            raise ArgumentError(
                f"Monitor: the first argument is the file of the table, got a"
                f" {type(output).__name__}.",
                "Write monitor = Monitor('ranks.csv', data), and monitor(network, step) in the"
                " loop.",
            )
        own = {name: options.pop(name) for name in _OWN if name in options}
        self._how = read_options(MonitorOptions, {"output": output, **own}, PYTHON)
        if self._how.every is not None and self._how.steps:
            raise UsageError("every and steps: both choose steps.", "Give one of them.")
        self._every = LOG if self._how.every is None else self._how.every
        self._ema = ema
        self._options = live_options(data, options)
        self._run = self._how.run or Path(os.path.abspath(output)).parent.name or "run"  # noqa: PTH100  # a link to a table is in the folder of its name
        self._group = Group()
        self._table: MonitorTable | None = None
        self._is_closed = False
        if self._group.may_be_first:
            self._open()
        self._cost = _Cost()
        self._last_step = -1
        self._warned: set[str] = set()
        self._pid = os.getpid()
        self._final: tuple[list[Row], tuple[str, ...]] = ([], ())

    def _open(self) -> MonitorTable:
        with process_unchanged():
            check_setting(self._options)
        overwrite = self._how.overwrite and not self._is_closed
        self._table = MonitorTable(self._how.output, self._run, self._options, overwrite=overwrite)
        atexit.register(self.close)
        return self._table

    def is_due(self, step: int) -> bool:
        """Return whether a step is one of those to measure."""
        if self._how.steps:
            return step in self._how.steps
        if isinstance(self._every, int):
            return step % self._every == 0
        return step == 0 or str(step).rstrip("0") in {"1", "2", "5"}

    def __call__(
        self, model: Network, step: int, *, ema: Network | None = None
    ) -> dict[str, float]:
        """Measure a network if the step is due.

        Args:
            model: The network that is being trained, or a state dict for the option `model`.
            step: The number of optimizer steps so far.
            ema: Averaged weights to measure, in place of those given to the monitor.

        Returns:
            The values for a logger: `local_rank/LAYER` and `effective_rank/LAYER`, further
            tolerances as `local_rank_LABEL/LAYER`. Empty if nothing was measured.

        Raises:
            LocalrankError: With on_error="raise": if the step cannot be measured.
        """
        try:
            step = step_of(step)
        except LocalrankError as error:
            if self._how.on_error == "raise":
                raise
            self._warn(str(error))
            return {}
        if step == self._last_step or not self.is_due(step):
            return {}
        self._last_step = step
        started = self._cost.start(model)
        try:
            return self._at(model, step, ema if ema is not None else self._ema)
        finally:
            self._cost.stop(started)

    def _at(self, model: Network, step: int, ema: Network | None) -> dict[str, float]:
        share = self._how.max_share
        skips = share is not None and self._cost.exceeds(share)
        if self._group.from_first(skips):
            if self._table is not None:
                self._table.skipped.add(step)
            return {}
        found: dict[str, float] = {}
        fault: LocalrankError | None = None
        try:
            network = self._network(model, ema)
            if self._group.is_first:
                found = self._measure(*network, step)
        except Exception as error:  # a training must not end for it
            fault = _known(error)
            if self._how.on_error == "raise" and not self._group.is_several:
                raise
        # The others wait here for the first.
        fault = self._group.from_first(fault)
        if fault is not None:
            self._report(step, fault)
        return found

    def _network(self, model: Network, ema: Network | None) -> tuple[Network, Any]:
        """Return what to measure: a network, or weights; and weights for the network, if any."""
        if not isinstance(model, nn.Module | Mapping):
            raise ArgumentError(
                f"monitor(model, step): expected a network or a state dict, got a"
                f" {type(model).__name__}.",
                "Pass the network being trained.",
            )
        chosen = ema if isinstance(ema, nn.Module) else model
        weights = None if ema is None or isinstance(ema, nn.Module) else ema
        if isinstance(chosen, nn.Module):
            refuse_partitioned(chosen)
            if is_sharded(chosen):
                if self._options.model is None:
                    raise SettingsError(
                        "the model is sharded by FSDP, and so would be a copy of it.",
                        "Give the code that builds it: Monitor(..., model=lambda: Net(...)).",
                    )
                return gathered(chosen) if weights is None else weights, None
        return chosen, weights

    def _measure(self, network: Network, weights: Any, step: int) -> dict[str, float]:
        if self._is_forked:  # both processes would write to one journal
            raise SettingsError(
                "the monitor was created in another process, from which this one was forked.",
                "Create the monitor in the process that trains, in the function that it runs.",
            )
        # A training may go on after its end.
        table = self._table or self._open()
        place = (self._run, step)
        with LOCK, process_unchanged():
            if isinstance(network, nn.Module):
                plan = plan_network(network, self._options, place, _note, weights)
            else:
                plan = plan_weights(network, self._options, place, _note)
            table.accept(plan)
            if table.is_done(plan):  # before the training was interrupted
                return {}
            self._check_time(plan)
            record = record_of(plan, _note)
            table.facts = self._facts(table)
            try:
                table.add_step(record, _warning)
            except OutputError as error:  # the numbers are there, and perhaps in the journal
                if self._how.on_error == "raise":
                    raise
                self._warn(str(error))
        if not record.is_finite:
            self._warn(record.flaw)
        return _values(record)

    def _check_time(self, plan: Plan) -> None:
        """Refuse a measurement that takes longer than the other processes would wait."""
        if not self._group.is_several or self._cost.n_measured:
            return
        limit = self._group.seconds / 2
        found = long_time(plan, limit)
        if found is not None:
            raise SettingsError(
                f"measuring takes about {duration(found.seconds)}, while the other processes wait,"
                f" and their group gives up after {duration(self._group.seconds)}.",
                "Measure fewer points or layers, or give the group a longer timeout.",
            )

    def _report(self, step: int, fault: LocalrankError) -> None:
        if self._how.on_error == "raise":
            raise fault
        if not self._group.is_first:
            return
        self._warn(f"step {step} is not measured: {fault}", str(fault))
        if self._is_forked:
            return
        try:
            (self._table or self._open()).add_failed(step, fault)
        except Exception as error:  # a training must not end for it
            self._warn(str(_known(error)))

    def attempt(self, work: Callable[[], object], what: str) -> None:
        """Do something that the training does not depend on.

        Raises:
            Exception: With on_error="raise": if it fails. Otherwise there is a warning.
        """
        try:
            work()
        except Exception as error:  # a training must not end for it
            if self._how.on_error == "raise":
                raise
            self._warn(f"{what} ({cause(error)})", what)

    def __reduce__(self) -> str:
        """Refuse to be sent to another process, which could not write to the same table.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError(
            "a monitor cannot be sent to another process.",
            "Create it in the process that trains, in the function that it runs. With Lightning,"
            " strategy='ddp' starts your script in each process, unlike 'ddp_spawn'.",
        )

    def __copy__(self) -> Self:
        """Return itself: there is one monitor of a table."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: there is one monitor of a table."""
        return self

    def _warn(self, text: str, key: str = "") -> None:
        if (key or text) not in self._warned:
            self._warned.add(key or text)
            _warning(f"{self._how.output}: {text}")

    def _facts(self, table: MonitorTable) -> dict[str, Any]:
        return {
            "seconds": round(self._cost.spent, 3),
            "share_of_time": round(self._cost.share, 5),
            "skipped_steps": sorted(table.skipped),
        }

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    @property
    def share(self) -> float:
        """The share of the time since the monitor was created that measuring took."""
        return self._cost.share

    @property
    def table(self) -> "pd.DataFrame":
        """All rows so far, including those from before training was resumed."""
        from localrank_cli.results.read import to_frame

        rows, columns = self._final if self._table is None else self._table.all_rows()
        return to_frame(rows, columns)

    def close(self) -> None:
        """Write the table, and print how long measuring took. Also called when the process ends.

        Raises:
            LocalrankError: With on_error="raise": if the table cannot be written.
        """
        if self._is_forked:  # a worker of a DataLoader
            return
        atexit.unregister(self.close)
        if self._table is None:
            return
        table, self._table, self._is_closed = self._table, None, True
        try:
            table.facts = self._facts(table)
            self._final = table.all_rows()
            table.save()
            if not table.n_kept and self._final[0]:
                self._warn("there is no table, since no step was measured")
        except Exception as error:  # a training must not end for it
            if self._how.on_error == "raise":
                raise
            self._warn(str(_known(error)))
        finally:
            table.__exit__()
        if not self._how.quiet:
            self._cost.print(self._how.output, len(table.skipped))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Cost:
    """The time that measuring took, and the time since the monitor was created."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.spent = 0.0
        self.n_measured = 0
        self._last = 0.0

    def start(self, model: object) -> float:
        """Return the time, once a GPU has done what the training asked of it."""
        if isinstance(model, nn.Module):
            first = next(model.parameters(), None)
            if first is not None and first.is_cuda:
                torch.cuda.synchronize(first.device)
        return time.perf_counter()

    def stop(self, started: float) -> None:
        """Add what passed since the start."""
        self._last = time.perf_counter() - started
        self.spent += self._last
        self.n_measured += 1

    @property
    def share(self) -> float:
        """The share of all time so far."""
        return self.spent / max(time.perf_counter() - self._began, 1e-9)

    def exceeds(self, share: float) -> bool:
        """Return whether one more as long as the last would take more than a share of the time."""
        if not self.n_measured:
            return False
        passed = time.perf_counter() - self._began
        return self.spent + self._last > share * (passed + self._last)

    def print(self, output: Path, n_skipped: int) -> None:
        """Print a line on stderr."""
        if not self.n_measured:
            return
        left = f"; {n_skipped} steps skipped (max_share)" if n_skipped else ""
        text = (
            f"localrank: {output}: measuring took {duration(self.spent)},"
            f" {100 * self.share:.2g} % of the training time{left}\n"
        )
        if sys.stderr is not None:
            sys.stderr.write(text)


def _note(text: str) -> None:
    _logger.info("%s", printable(text))


def _warning(text: str) -> None:
    """Log a warning, on one line: names and errors in it come from the user's code.

    It is no warning of Python's, which a filter may turn into an error.
    """
    _logger.warning("%s", printable(text))


def _known(error: Exception) -> LocalrankError:
    """Return an error of localrank's own for any other."""
    if isinstance(error, LocalrankError):
        return error
    return LocalrankError(cause(error), "Pass on_error='raise' to see where it was raised.")


def _values(record: CheckpointRecord) -> dict[str, float]:
    """Return the values of a step under the names for a logger."""
    rows = record.rows
    pairs = [(str(row["layer"]), str(row["wrt"])) for row in rows]
    names = pair_names(pairs)
    return tags((names[pair], row) for pair, row in zip(pairs, rows, strict=True))


_options = [*_OWN.values(), *_LIVE]
_class: Any = Monitor
_class.__signature__ = signature_of(Monitor, _options)
_class.__doc__ = described(Monitor, _options)
