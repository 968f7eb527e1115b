"""`localrank analyze`: compute a table of local ranks."""

import typer

from localrank_cli.cli.command import do_not_spin, shared_names, with_options, words_of
from localrank_cli.divide.share import is_several
from localrank_cli.errors import UsageError
from localrank_cli.options.needs import check_needs
from localrank_cli.options.table import AnalyzeOptions, check_options


@with_options(
    AnalyzeOptions,
    example="localrank analyze my_run --model train.py:Net --data points.pt -o ranks.csv",
)
def analyze(context: typer.Context, options: AnalyzeOptions) -> None:
    """Compute the local rank of every layer at every checkpoint."""
    check_options(options)
    check_needs(options)
    do_not_spin()
    # torch is imported only now, so that help, version and usage errors need not wait for it.
    if options.device is not None and is_several(options.device):
        check_divisible(options)
        from localrank_cli.cli.run_local import run_local

        raise typer.Exit(run_local(options, words_of(context, shared_names())))
    from localrank_cli.cli.run_analyze import run_analysis

    raise typer.Exit(run_analysis(options))


def check_divisible(options: AnalyzeOptions) -> None:
    """Refuse options that cannot be divided among several workers.

    Raises:
        UsageError: If the analysis is itself a part, or follows a series that grows.
    """
    if options.shard is not None or options.plan is not None:
        raise UsageError(
            "--shard: the work is divided among several workers here.",
            "Give --shard to localrank analyze on one device.",
        )
    if options.follow:
        raise UsageError("--follow: runs on one worker only.", "Give one --device.")
