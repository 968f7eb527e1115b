"""`localrank inspect`: report what analyze would do."""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import do_not_spin, with_options
from localrank_cli.errors import INCOMPLETE, printable
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions, InspectOptions, check_options

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.run.inspect import Inspection

_MAX_STEPS = 12  # named for a person; further ones are left out but for the last
_NOT_OFFERED = {one.name for one in options_of(AnalyzeOptions) if not one.setting.in_inspect}


@with_options(AnalyzeOptions, InspectOptions, without=_NOT_OFFERED)
def inspect(_context: typer.Context, options: AnalyzeOptions, how: InspectOptions) -> None:
    """Report what analyze would do: steps, layers, shapes, route, cost. No table is made."""
    check_options(options)
    do_not_spin()
    inspections = _inspect(options, timed=how.timed is not False)
    if how.as_json:
        print(json.dumps({"series": [one.to_json() for one in inspections]}, indent=2))
    else:
        for inspection in inspections:
            for label, text in _lines(inspection):
                print(f"  {label:<12} {printable(text)}" if label else printable(text))
    sys.stdout.flush()
    if any(one.n_failed for one in inspections):
        raise typer.Exit(INCOMPLETE)


def _inspect(options: AnalyzeOptions, *, timed: bool) -> "list[Inspection]":
    from localrank_cli.cli.screen import Screen, stdout_for_data
    from localrank_cli.cli.signals import signal_handler
    from localrank_cli.run.inspect import inspect_series
    from localrank_cli.run.plan import make_plan

    screen = Screen(quiet=options.quiet, verbose=False)
    with signal_handler() as handler, stdout_for_data(screen), handler.interruptible():
        # A bad checkpoint takes one line of the report and does not end it.
        plan = make_plan(replace(options, on_error="skip"), screen.note)
        return [inspect_series(plan, series, timed=timed) for series in plan.series]


def _lines(one: "Inspection") -> list[tuple[str, str]]:
    good = [line for line in one.checkpoints if not line.problem]
    steps = ", ".join(str(line.step) for line in good[:_MAX_STEPS])
    if len(good) > _MAX_STEPS:
        steps += f", ... {good[-1].step}"
    lines = [("", f"{one.run} ({one.folder})"), ("model", one.model)]
    lines.append(("checkpoints", f"{len(good)}: steps {steps}" if good else "none"))
    lines += [("left out", line.problem) for line in one.checkpoints if line.problem]
    keys = dict.fromkeys(line.weights for line in good if line.weights)
    lines += [("weights", f"under {key!r}") for key in keys]
    strippings = dict.fromkeys(line.taken_off for line in good if line.taken_off)
    lines += [("names", f"without {stripping}") for stripping in strippings]
    lines += [
        ("layer", f"{r.layer}: {r.module}, {r.n_out} x {r.n_in}, rank at most {r.max_rank}")
        for r in one.layers
    ]
    lines += [("route", route) for route in one.routes]
    lines.append(("points", f"{one.n_points}; tolerances {', '.join(one.tolerances)}"))
    lines.append(("memory", f"{one.memory / 2**20:.0f} MiB to work in, on {one.device}"))
    if one.seconds is not None:
        lines.append(("time", f"about {_duration(one.seconds)}, by a few timed points"))
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
