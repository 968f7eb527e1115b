"""`localrank submit`: divide an analysis among processes, here or on a cluster."""

from pathlib import Path

import typer

from localrank_cli.cli.analyze import check_divisible
from localrank_cli.cli.command import do_not_spin, shared_names, with_options, words_of
from localrank_cli.errors import UsageError
from localrank_cli.options.needs import check_needs
from localrank_cli.options.table import AnalyzeOptions, SubmitOptions, check_options


@with_options(
    AnalyzeOptions,
    SubmitOptions,
    example="localrank submit my_run --data points.pt --workers 4 -o ranks.csv",
)
def submit(context: typer.Context, options: AnalyzeOptions, division: SubmitOptions) -> None:
    """Divide an analysis among several workers and merge their results."""
    check_options(options)
    check_divisible(options)
    check_needs(options)
    is_slurm = division.cluster == "slurm"
    if not is_slurm and (division.dry_run or division.wait):
        raise UsageError(
            f"--{'dry-run' if division.dry_run else 'wait'}: is for a cluster, and local workers"
            " are always waited for.",
            "Give --cluster slurm too, or leave it out.",
        )
    if options.output in (None, Path("-")):
        raise UsageError("submit: no file to write.", "Name one with -o FILE.")
    do_not_spin()
    words = words_of(context, shared_names())
    if is_slurm:
        from localrank_cli.cli.run_slurm import run_slurm

        raise typer.Exit(run_slurm(options, words, division))
    from localrank_cli.cli.run_local import run_local

    raise typer.Exit(run_local(options, words, division.workers))
