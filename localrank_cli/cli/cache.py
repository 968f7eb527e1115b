"""`localrank cache`: list what was downloaded, and remove it."""

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import printable, readable
from localrank_cli.options.views import CacheOptions


@with_options(CacheOptions, example="localrank cache --clear")
def cache(_context: typer.Context, options: CacheOptions) -> None:
    """List the checkpoints that analyze has downloaded, or remove them.

    The cache of the Hub client itself is not listed, and nothing is ever removed from it.
    """
    from localrank_cli.remote.private import private_folders

    total = 0
    for one in private_folders(options.folder):
        n_bytes, is_used, address = one.n_bytes, one.is_used, one.address
        state = "in use" if is_used else "kept" if one.keeps else "left by a run that was killed"
        if options.clear and not is_used:
            one.remove()
            state = "removed"
        total += n_bytes
        print(printable(f"{one.folder}  {address}  {readable(n_bytes)}  {state}"))
    print(f"{readable(total)} in all")
