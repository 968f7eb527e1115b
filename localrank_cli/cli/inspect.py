"""`localrank inspect`: report what analyze would do."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import do_not_spin, shared_names, with_options, words_of
from localrank_cli.errors import INCOMPLETE, duration, printable, readable
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions, InspectOptions, check_options

if TYPE_CHECKING:  # importing torch is slow
    from localrank_cli.run.contents import CheckpointLine, Contents
    from localrank_cli.run.inspect import Inspection, LayerLine, SourceLine

_MAX_STEPS = 12  # steps listed in the text; of the others only the last one
_MAX_KEYS = 40
_HEADS = ("layer", "output", "Jacobian", "needs", "passes", "time", "fits")
_INDENT, _GAP = 2, "  "
_VERBATIM = "-"  # in place of a label
_NOT_OFFERED = {one.name for one in options_of(AnalyzeOptions) if not one.setting.in_inspect}


@with_options(
    AnalyzeOptions, InspectOptions, without=_NOT_OFFERED, example="localrank inspect my_run"
)
def inspect(context: typer.Context, options: AnalyzeOptions, how: InspectOptions) -> None:
    """Show what a folder contains, what is missing, and what analyze would do. Writes no table."""
    check_options(options)
    do_not_spin()
    found = _inspect(options, timed=how.timed is not False)
    if how.as_json:
        print(json.dumps({"series": [one.to_json() for one in found]}, indent=2))
    else:
        _print(found, words_of(context, shared_names()))
    sys.stdout.flush()
    if any(one.n_failed for one in found):
        raise typer.Exit(INCOMPLETE)


def _inspect(options: AnalyzeOptions, *, timed: bool) -> "Sequence[Inspection | Contents]":
    from localrank_cli.cli.screen import Screen, stdout_for_data
    from localrank_cli.cli.signals import signal_handler
    from localrank_cli.remote.places import downloads
    from localrank_cli.run.inspect import inspect_all

    screen = Screen(quiet=options.quiet, verbose=False)
    with signal_handler() as handler, downloads(), stdout_for_data(screen), handler.interruptible():
        return inspect_all(options, screen.note, timed=timed)


def _print(found: "Sequence[Inspection | Contents]", words: Sequence[str]) -> None:
    from localrank_cli.run.contents import Contents

    for one in found:
        lines = _lines_of_contents(one) if isinstance(one, Contents) else _lines(one)
        for label, text in lines:
            if label == _VERBATIM:
                print(text)
            else:
                print(f"  {label:<12} {printable(text)}" if label else printable(text))
        if isinstance(one, Contents):
            own = words if len(found) == 1 else [one.folder, *_without_paths(words)]
            command = shlex.join(
                ["localrank", "analyze", *own, *(word for need in one.needs for word in need.words)]
            )
            # A path may contain several spaces in a row, which `printable` would join.
            print(
                f"  {'to analyze':<12} {command if command.isprintable() else printable(command)}"
            )


def _without_paths(words: Sequence[str]) -> list[str]:
    return list(words[next((i for i, word in enumerate(words) if word[:2] == "--"), len(words)) :])


def _lines_of_contents(one: "Contents") -> list[tuple[str, str]]:
    good = [line for line in one.checkpoints if not line.problem]
    lines = [("", f"{one.run} ({one.folder})"), ("written by", one.written_by)]
    lines.append(("checkpoints", f"{len(good)}: {_steps(good)}"))
    lines += [("left out", line.problem) for line in one.checkpoints if line.problem]
    shown = one.keys if len(one.keys) <= _MAX_KEYS else one.keys[: _MAX_KEYS - 1]
    lines += [
        ("weights", f"{printable(line.key)} {' x '.join(map(str, line.shape)) or 'one number'}")
        for line in shown
    ]
    if len(shown) < len(one.keys):
        lines.append(("weights", f"and {len(one.keys) - len(shown)} more (--json lists all)"))
    lines += [("model", one.reading)] if one.reading else []
    lines += [("needs", f"{need.written}: {need.help}") for need in one.needs]
    return lines


def _steps(good: "Sequence[CheckpointLine]") -> str:
    steps = ", ".join(str(line.step) for line in good[:_MAX_STEPS])
    more = f", ... {good[-1].step}" if len(good) > _MAX_STEPS else ""
    return f"step{'s' if len(good) > 1 else ''} {steps}{more}"


def _lines(one: "Inspection") -> list[tuple[str, str]]:
    good = [line for line in one.checkpoints if not line.problem]
    lines = [("", f"{one.run} ({one.folder})"), ("model", one.model)]
    lines.append(("checkpoints", f"{len(good)}: {_steps(good)}" if good else "none"))
    lines += [("left out", line.problem) for line in one.checkpoints if line.problem]
    keys = dict.fromkeys(line.weights for line in good if line.weights)
    lines += [("weights", f"under {key!r}") for key in keys]
    strippings = dict.fromkeys(line.taken_off for line in good if line.taken_off)
    lines += [("names", f"without {stripping}") for stripping in strippings]
    lines += [("source", _source(source)) for source in one.sources]
    lines += [("route", route) for route in one.routes]
    lines.append(("points", f"{one.n_points}; tolerances {', '.join(one.tolerances)}"))
    lines.append(("memory", f"{readable(one.memory)} to work in, on {one.device}"))
    lines += [(_VERBATIM, row) for row in _table(one)]
    unfit = sum(not layer.fits for layer in one.layers)
    if unfit:
        of = f"{unfit} of {len(one.layers)} do not fit in {readable(one.memory)}"
        then = "each of these does:" if one.ways_out else "leave layers out with --exclude"
        lines.append(("too large", f"{of}; {then}"))
        lines += [("fits", f"{way.change}: {way.result}") for way in one.ways_out]
    if one.beside:
        lines.append(("beside", _beside(one)))
    if one.seconds is not None and one.checkpoint_seconds is not None:
        count = len(good)
        lines.append(
            (
                "time",
                f"about {duration(one.checkpoint_seconds)} for one checkpoint,"
                f" {duration(one.seconds)} for all {count}",
            )
        )
    return lines


def _beside(one: "Inspection") -> str:
    largest = max(one.beside, key=lambda need: need.n_bytes)
    too_large = "" if largest.n_bytes <= one.memory else ", which does not fit"
    return f"{largest.what} of {largest.layer} need {readable(largest.n_bytes)}{too_large}"


def _source(source: "SourceLine") -> str:
    axes = source.axes or "no axis of the points alone"
    return f"{source.wrt or 'the input'}: {axes}, {source.n_in} entries varied"


def _table(one: "Inspection") -> list[str]:
    """Return the lines of the table of layers; long names have a line of their own."""
    several = len(one.sources) > 1
    rows = [_HEADS, *(_row(line, several=several) for line in one.layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(_HEADS))]
    left = shutil.get_terminal_size().columns - _INDENT - sum(widths) - len(_GAP) * len(widths)
    names = max(len(_HEADS[0]), min(left, max(len(row[0]) for row in rows)))
    lines = []
    for name, *figures in rows:
        if len(name) > names:
            lines.append(f"{'':{_INDENT}}{name}")
        cells = [f"{'' if len(name) > names else name:<{names}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(figures, widths, strict=True)]
        lines.append(f"{'':{_INDENT}}{_GAP.join(cells)}")
    return lines


def _row(line: "LayerLine", *, several: bool) -> tuple[str, ...]:
    name = f"{line.layer} from {line.wrt or 'the input'}" if several else line.layer
    grid = "x".join(map(str, line.grid))
    output = "?" if line.n_features is None else f"{grid} x {line.n_features}".removeprefix(" x ")
    count = f"{line.n_jacobians} of " if line.n_jacobians > 1 else ""
    return (
        printable(name),
        output,
        f"{count}{line.n_out} x {line.n_in}",
        readable(line.needed_bytes),
        str(line.passes) if line.passes else "-",
        "-" if line.seconds is None else duration(line.seconds),
        "yes" if line.fits else "no",
    )
