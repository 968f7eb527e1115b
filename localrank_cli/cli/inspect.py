"""`localrank inspect`: what analyze would do."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localrank_cli.cli.analyze import parse_options
from localrank_cli.cli.command import taking
from localrank_cli.cli.given import do_not_spin, options_from
from localrank_cli.errors import INCOMPLETE, printable

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.options.table import AnalyzeOptions
    from localrank_cli.run.inspect import Inspection

_LISTED = 12


# What only matters once something is computed, or written.
_NOT_OFFERED = {
    "information", "information_points", "information_noise", "labels_key", "output", "overwrite",
    "spectra", "on_error", "shard", "follow", "until", "plan", "verbose",
}  # fmt: skip


def parse_inspection(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    timed: Annotated[
        bool,
        typer.Option(
            "--time/--no-time", help="Compute a few points, for the route and the time it takes."
        ),
    ] = True,
) -> tuple[bool, bool]:
    """Read what inspect alone is given.

    Args:
        as_json: For a program.
        timed: Whether points are computed.

    Returns:
        Both.
    """
    return as_json, timed


@taking(parse_options, parse_inspection, without=_NOT_OFFERED)
def inspect(context: typer.Context, **given: Any) -> None:  # noqa: ARG001  # typer gives it
    """Say what analyze would do: steps, layers, shapes, route, cost. No table is made."""
    as_json, timed = parse_inspection(given.pop("as_json"), given.pop("timed"))
    # A bad checkpoint is one line of the answer, not the end of it.
    options = options_from(given | {"on_error": "skip"})
    do_not_spin()
    found = _inspect(options, quiet=given["quiet"], timed=timed)
    if as_json:
        print(json.dumps({"series": [one.to_json() for one in found]}, indent=2))
    else:
        for one in found:
            for label, text in _lines(one):
                print(f"  {label:<12} {printable(text)}" if label else printable(text))
    sys.stdout.flush()
    if any(one.n_failed for one in found):
        raise typer.Exit(INCOMPLETE)


def _inspect(options: "AnalyzeOptions", *, quiet: bool, timed: bool) -> "list[Inspection]":
    from localrank_cli.cli.screen import Screen, stdout_for_data
    from localrank_cli.cli.signals import hearing
    from localrank_cli.run.inspect import inspect_series
    from localrank_cli.run.plan import make_plan

    screen = Screen(quiet=quiet, verbose=False)
    with hearing() as ears, stdout_for_data(screen), ears.listening():
        plan = make_plan(options, screen.note)
        return [inspect_series(plan, series, timed=timed) for series in plan.series]


def _lines(one: "Inspection") -> list[tuple[str, str]]:
    good = [line for line in one.checkpoints if not line.problem]
    steps = ", ".join(str(line.step) for line in good[:_LISTED])
    if len(good) > _LISTED:
        steps += f", ... {good[-1].step}"
    lines = [("", f"{one.run} ({one.folder})"), ("model", one.model)]
    lines.append(("checkpoints", f"{len(good)}: steps {steps}" if good else "none"))
    lines += [("left out", line.problem) for line in one.checkpoints if line.problem]
    keys = dict.fromkeys(line.weights for line in good if line.weights)
    lines += [("weights", f"under {key!r}") for key in keys]
    taken = dict.fromkeys(line.taken_off for line in good if line.taken_off)
    lines += [("names", f"without {what}") for what in taken]
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
