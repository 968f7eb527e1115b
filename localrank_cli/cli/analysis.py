"""Runs `analyze` for a terminal, a pipe or a file."""

import os
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console

from localrank_cli.cli.screen import Screen, stdout_for_data
from localrank_cli.cli.signals import hearing
from localrank_cli.cli.summary import Summary
from localrank_cli.pipeline.manifest import make_manifest
from localrank_cli.pipeline.options import AnalyzeOptions
from localrank_cli.pipeline.plan import Plan, make_plan
from localrank_cli.pipeline.run import CheckpointResult, run_plan
from localrank_cli.table.columns import header
from localrank_cli.table.write import (
    OutputFile,
    RowWriter,
    cannot_write,
    check_suffix,
    commit_with_manifest,
    refuse_existing,
)

_NOT_FINITE = 3


def run_analysis(options: AnalyzeOptions, *, quiet: bool, verbose: bool) -> int:
    """Analyses and writes the results where they belong.

    Args:
        options: Checked already as far as possible without opening a file.
        quiet: No notes, no progress.
        verbose: More notes.

    Returns:
        The exit status: 0, or 3 when some values were not finite.
    """
    target = options.output if options.output not in (None, Path("-")) else None
    if target is not None:
        check_suffix(target)
        refuse_existing(target)
        target = target.absolute()  # a model's code may change the working directory
    screen = Screen(quiet=quiet, verbose=verbose)
    is_terminal = sys.stdout.isatty()
    to_stdout = options.output == Path("-") or (target is None and not is_terminal)
    started = time.perf_counter()
    with hearing() as ears, ExitStack() as stack:
        data = stack.enter_context(stdout_for_data(screen))
        # Before any work, so that a place that cannot be written is known at once.
        file = stack.enter_context(OutputFile(target)) if target is not None else None
        stream = file.stream if file is not None else data if to_stdout else None
        with ears.listening():
            run = _compute(options, screen, stream, target)
        if file is not None:
            seconds = time.perf_counter() - started
            commit_with_manifest(file, make_manifest(run.plan, sys.argv, run.facts, seconds))
            screen.note(f"wrote {options.output} and {file.target.name}.json")
        if is_terminal and not to_stdout:
            run.summary.show(_console(data))
            data.flush()
    return 0 if run.finite else _NOT_FINITE


@dataclass
class _Run:
    plan: Plan
    summary: Summary = field(default_factory=Summary)
    facts: list[dict[str, object]] = field(default_factory=list)
    finite: bool = True


def _compute(
    options: AnalyzeOptions, screen: Screen, stream: TextIO | None, target: Path | None
) -> _Run:
    run = _Run(make_plan(options, screen.note))
    _describe(run.plan, screen)
    writer = _writer(stream, run.plan, target)
    with screen.progress(run.plan.n_checkpoints) as steps:
        for result in run_plan(run.plan, screen.note):
            _write(writer, result, target)
            run.summary.add(result.rows)
            run.facts.append(result.facts)
            run.finite &= _report(result, screen)
            steps.done(f"{result.run} step {result.step}")
    return run


def _console(terminal: TextIO) -> Console:
    width = None
    if "COLUMNS" not in os.environ:
        # rich looks at the standard streams, which may all be something else by now.
        with suppress(OSError):
            width = os.get_terminal_size(terminal.fileno()).columns or None
    return Console(file=terminal, highlight=False, force_terminal=True, width=width)


def _writer(stream: TextIO | None, plan: Plan, target: Path | None) -> RowWriter | None:
    if stream is None:
        return None
    suffix = target.suffix.lower() if target is not None else ".csv"
    return RowWriter(stream, header(plan.extra_columns), suffix)


def _write(writer: RowWriter | None, result: CheckpointResult, target: Path | None) -> None:
    if writer is None:
        return
    try:
        writer.write(result.rows)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write(target or Path("standard output"), error) from error


def _describe(plan: Plan, screen: Screen) -> None:
    for series in plan.series:
        layers = ", ".join(record.call.label for record in series.examination.records)
        screen.detail(
            f"{series.run}: {len(series.checkpoints)} checkpoints,"
            f" {series.points.tensor.shape[0]} points, {plan.device}, layers {layers}"
        )


def _report(result: CheckpointResult, screen: Screen) -> bool:
    routes = result.facts.get("routes")
    screen.detail(
        f"{result.run} step {result.step}: {result.facts['seconds']} s,"
        f" {'; '.join(routes) if isinstance(routes, list) else ''}"
    )
    if any(row["n_undecided"] for row in result.rows):
        screen.note(
            f"{result.run}: rounding decides the rank at some points (column n_undecided): a"
            " singular value is as close to the tolerance as the SVD is exact; --rtol eps is the"
            " least tolerance that means something"
        )
    if result.is_finite:
        return True
    layers = dict.fromkeys(str(row["layer"]) for row in result.rows if row["status"] != "ok")
    screen.warn(
        f"warning: {result.run}: {result.checkpoint} (step {result.step}): non-finite values in"
        f" {', '.join(layers)}"
    )
    return False
