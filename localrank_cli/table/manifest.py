"""Reads the manifest beside a table."""

import json
from pathlib import Path
from typing import Any

from localrank_cli.table.write import manifest_path


def read_manifest(table: Path) -> dict[str, Any] | None:
    """What stands beside a table.

    Args:
        table: The table.

    Returns:
        The manifest; None where there is none, or where another program wrote a file of its name.
    """
    try:
        found = json.loads(manifest_path(table).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "localrank_manifest" in found else None


def model_of(manifest: dict[str, Any] | None) -> str:
    """What the network is, in a few words.

    Args:
        manifest: Of `read_manifest`.

    Returns:
        The description that all series share; empty where they differ or nothing is known.
    """
    series = (manifest or {}).get("series")
    if not isinstance(series, list):
        return ""
    found = {str(one.get("model") or "") for one in series if isinstance(one, dict)}
    return found.pop() if len(found) == 1 else ""
