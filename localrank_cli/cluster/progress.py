"""How far the parts are, from their journals: nobody has to report anything."""

from pathlib import Path
from typing import Any

from localrank_cli.table.journal_lines import read_heads
from localrank_cli.table.record import KIND


class Progress:
    """Reads what was appended since the last look.

    Args:
        folder: With the tables of all shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reached: dict[Path, int] = {}

    def new(self) -> list[dict[str, Any]]:
        """Looks.

        Returns:
            The head of each checkpoint, or part of one, that was finished since.
        """
        found = []
        for path in sorted(self._folder.glob("shard-*.journal")):
            heads, self._reached[path] = read_heads(path, self._reached.get(path, 0))
            found += [head for head in heads if head["kind"] == KIND]
        return found


def kept_heads(folder: Path) -> set[tuple[str, str, str]]:
    """Tells what is finished.

    Args:
        folder: With the tables of all shards.

    Returns:
        Run, checkpoint and points of each unit that has numbers.
    """
    return {
        (head["run"], head["checkpoint"], str(head["points"]))
        for head in Progress(folder).new()
        if head["status"] == "ok"
    }
