"""`localrank compress`: replace layers by factors of low rank."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import do_not_spin, with_options
from localrank_cli.errors import INCOMPLETE, printable
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import (
    OF_COMPRESS,
    AnalyzeOptions,
    CompressOptions,
    check_compress,
    check_options,
)
from localrank_cli.results.compressed import LATENCY

if TYPE_CHECKING:  # importing torch is slow
    from localrank_cli.run.compress import Compressed
    from localrank_cli.run.compress_rows import Row

_NOT_OFFERED = {one.name for one in options_of(AnalyzeOptions)} - OF_COMPRESS
_BUDGETS = ("method", "budget", "weights", "loss", "loss_increase", "loss_increase_se", "accuracy")
_LAYERS = (
    "layer",
    "budget",
    "n_out",
    "n_in",
    "rank",
    "weights_after",
    "local_rank",
    "effective_rank_of_weight",
)


@with_options(
    AnalyzeOptions,
    CompressOptions,
    without=_NOT_OFFERED,
    example="localrank compress final.pt --data train.npz --budget 0.5 -o small",
)
def compress(_context: typer.Context, options: AnalyzeOptions, how: CompressOptions) -> None:
    """Replace layers of one checkpoint with low-rank factors, and measure the cost."""
    check_options(options)
    check_compress(how)
    do_not_spin()
    from localrank_cli.cli.screen import Screen, stdout_for_data
    from localrank_cli.cli.signals import signal_handler
    from localrank_cli.run.compress import compress as run_compress

    screen = Screen(quiet=options.quiet, verbose=False)
    with (
        signal_handler() as handler,
        stdout_for_data(screen),
        handler.interruptible(),
        screen.progress(1) as steps,
    ):
        name = options.checkpoints[0].name if options.checkpoints else ""
        found = run_compress(
            options, how, screen.note, lambda share, text: steps.within(name, share, text)
        )
    _print(found)
    sys.stdout.flush()
    if not found.keeps_limit:
        raise typer.Exit(INCOMPLETE)


def _print(found: "Compressed") -> None:
    for line in (*_table(found.budgets, _BUDGETS), "", *_table(found.layers, _LAYERS), ""):
        print(line)
    reasons = {
        str(layer["layer"]): layer["why_dense"] for layer in found.layers if layer["n_out"] is None
    }
    for name, reason in reasons.items():
        print(printable(f"{name} stays dense: {reason}"))
    for row in found.budgets:
        if row.get("note"):
            print(printable(f"{row['method']} at {row['budget']:g}: {row['note']}"))
    for text in found.verdicts:
        print(printable(text))
    print(_latency(found.budgets))
    print(printable(f"written to {found.folder}: load(model, path) in load.py loads the weights"))
    for folder in found.hf_folders:
        print(printable(f"{folder}: from_pretrained loads it; dense weights, at full size"))


def _latency(rows: "Sequence[Row]") -> str:
    """Return how long the original and each result take for one point."""
    timed = [row for row in rows if row.get(LATENCY) is not None]
    first, *results = (f"{row[LATENCY]:.3g} ms" for row in timed)
    shares = (f"{row['budget']:.0%}" for row in timed[1:])
    after = ", ".join(f"{time} with {share}" for time, share in zip(results, shares, strict=True))
    return f"One point takes {first} with all weights, {after} of the weights."


def _table(rows: "Sequence[Row]", columns: Sequence[str]) -> list[str]:
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
