"""`localrank merge`: the tables of shards put together."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrank_cli.cli.arguments import Debug
from localrank_cli.cli.command import OverwriteTable
from localrank_cli.errors import INCOMPLETE, LocalrankError, SettingsError, UsageError

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merge import Merge

_LISTED = 20


def merge(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|FILES",
            readable=False,
            help="A folder with the tables of all shards, or the tables.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="A .csv, .tsv, .jsonl or .parquet file.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge what is there, and list what is missing.")
    ] = False,
    overwrite: OverwriteTable = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            readable=False,
            help="All that this plan file of localrank submit lists must be there; the parts beside"
            " it are removed then.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Put the tables of shards together; the result is that of a single run."""
    del debug  # seen by the program itself
    if output is None:
        raise UsageError("merge: no file to write.", "Name one with -o FILE.")
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merge import collect, find_journals, write_merged
    from localrank_cli.results.journal import journal_path
    from localrank_cli.results.write import check_suffix

    screen = Screen(quiet=False, verbose=False)
    check_suffix(output)
    screen = Screen(quiet=False, verbose=False)
    target = output.absolute()
    # The result of an earlier merge may stand among the tables.
    journals = [path for path in find_journals(tables) if path != journal_path(target)]
    found = collect(journals)
    if plan is not None and not found.missing:
        from localrank_cli.divide.folder import missing_checkpoints
        from localrank_cli.results.plan_file import read_plan_file

        found.missing = missing_checkpoints(found, read_plan_file(plan))
    if found.missing:
        _tell_missing(found, journals, screen, partial=partial)
    flaws = write_merged(found, target, sys.argv, overwrite=overwrite)
    if plan is not None and not found.missing:
        from localrank_cli.divide.folder import ShardFolder

        if (folder := ShardFolder(target)).plan == plan.absolute():
            folder.clear()
    for flaw in flaws:
        screen.warn(f"warning: {flaw}")
    screen.note(f"wrote {output} and {output.name}.json")
    if flaws:
        raise typer.Exit(INCOMPLETE)


def _tell_missing(found: "Merge", journals: list[Path], screen: "Screen", *, partial: bool) -> None:
    for line in found.missing[:_LISTED]:
        screen.warn(f"warning: missing: {line}")
    if len(found.missing) > _LISTED:
        screen.warn(f"warning: missing: {len(found.missing) - _LISTED} more")
    if not partial:
        raise SettingsError(
            f"merge: {len(found.missing)} units are missing.",
            f"Compute them{_command(journals)}, or merge what is there with --partial.",
        )


def _command(journals: list[Path]) -> str:
    """Return the command of one of the shards, which shows that of the others."""
    from localrank_cli.results.manifest import read_manifest

    for path in journals:
        with suppress(LocalrankError, ValueError, IndexError):
            manifest = read_manifest(path.with_suffix("")) or {}
            words = list(manifest.get("command") or ())
            place = words.index("--shard")
            if not words[place + 1].startswith("auto"):
                words[place + 1] = "I/N"
            return f" with: {shlex.join(['localrank', *words[1:]])}"
    return ""
