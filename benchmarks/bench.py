"""Time localrank against what a user would write today, side by side.

Each method runs in a process of its own, in turn (A B C A B C ...), so that a machine whose speed
drifts does so for all. Each has its better number of threads of 1 and 2, and OpenMP's settings are
those of a user: OMP_WAIT_POLICY is not set. Ratios are of medians of wall seconds. Counts are
compared matrix by matrix.
"""

import argparse
import json
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import networks
import torch
from cases import CASES
from commands import many, start_up, whole_command
from methods import COUNTS
from real import REAL, real_lines
from rich.console import Console
from rich.table import Table
from scaling import merging, scaling
from sides import Side, best_sides

HERE = Path(__file__).parent
# What `make bench` runs, in under 12 minutes on a quiet machine; the other parts are longer.
TABLE = (*CASES, "command", "help")
OTHERS = ("real", *REAL, "many", "scaling", "merge5000")


def compare(key: str, *, quick: bool = False) -> list[dict[str, Any]]:
    """Time one case against its baselines.

    Args:
        key: Of CASES.
        quick: Whether to run only a part of it, once.

    Returns:
        A line of the table for each baseline and dtype.
    """
    case = CASES[key]
    sides = best_sides(key, quick=quick)
    ours, command, *others = sides
    counts = next((side for side in others if side.setting.method == COUNTS), None)
    lines = []
    for side in others:
        if side is counts:
            continue
        method, is_float32 = side.setting.method, side.setting.dtype == "float32"
        line = {
            "case": case.name,
            "baseline": side.setting.label,
            "localrank": _numbers(ours),
            "as_command": _numbers(command),
            "theirs": _numbers(side),
            "target": case.baselines[method] if is_float32 else None,
            **_differing(ours, side),
        }
        lines.append(line)
        if counts is not None and case.counts is not None and method == case.counts[0]:
            lines.append(
                line
                | {"case": f"{case.name}, `--measures counts`", "localrank": _numbers(counts)}
                | {"target": case.counts[1] if is_float32 else None}
                | _differing(counts, side)
            )
    lines[0]["command_differing"] = _differing(ours, command)["differing"]
    return lines


def _numbers(side: Side) -> dict[str, Any]:
    return {
        "seconds": side.median("seconds"),
        "processor": side.median("processor"),
        "threads": side.setting.threads,
        "peak": side.answers[0]["peak"],
        "runs": len(side.answers),
    }


def _differing(ours: Side, theirs: Side) -> dict[str, int]:
    pairs = [
        (mine, other)
        for of_layer, of_other in zip(
            ours.answers[0]["counts"], theirs.answers[0]["counts"], strict=True
        )
        for mine, other in zip(of_layer, of_other, strict=True)
    ]
    return {"differing": sum(mine != other for mine, other in pairs), "matrices": len(pairs)}


def show(lines: Iterable[dict[str, Any]]) -> None:
    """Print the table, in Markdown if it is not for a terminal.

    Args:
        lines: From the functions above.
    """
    header = (
        "case", "baseline", "wall s", "CPU s", "threads", "localrank wall s", "CPU s", "threads",
        "ratio", "target", "counts that differ",
    )  # fmt: skip
    rows = [header, *(_row(line) for line in lines)]
    console = Console()
    if console.is_terminal:
        table = Table(*header)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        return
    rows.insert(1, ("---", "---", *("---:",) * 9))
    for row in rows:
        print("|", " | ".join(row), "|", flush=True)


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs, target = line["localrank"], line.get("theirs"), line.get("target")
    sides = ((theirs, line.get("note", "")), (ours, ""))
    cells = [cell for side, note in sides for cell in _cells(side, note)]
    ratio = "" if theirs is None else f"{theirs['seconds'] / ours['seconds']:.1f}"
    counts = f"{line['differing']} of {line['matrices']}" if "differing" in line else ""
    goal = "" if target is None else f"{target:g}"
    return line["case"], line["baseline"], *cells, ratio, goal, counts


def _cells(side: dict[str, Any] | None, note: str) -> tuple[str, str, str]:
    if side is None:
        return "", "", ""
    threads = str(side.get("threads", ""))
    return f"{side['seconds']:.3g}{note}", f"{side['processor']:.3g}", threads


def lines_of(key: str, *, quick: bool) -> list[dict[str, Any]]:
    """Run one part.

    Args:
        key: Of TABLE or OTHERS.
        quick: Whether to run only a part of it, once.

    Returns:
        Lines of the table.
    """
    if key in CASES:
        return compare(key, quick=quick)
    if key in REAL or key == "real":
        return real_lines(REAL if key == "real" else [key], quick=quick)
    return {"command": whole_command, "help": start_up, "many": many, "merge5000": merging}.get(
        key, scaling
    )()


def main() -> None:
    """Run the selected parts, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=(*TABLE, *OTHERS), default=TABLE)
    parser.add_argument("--quick", action="store_true", help="whether everything runs: a minute")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    if options.quick:
        networks.TRAINING_STEPS = 20
    lines: list[dict[str, Any]] = []
    for key in options.only:
        found = lines_of(key, quick=options.quick)
        lines += found
        if key in {"many", "scaling", "merge5000"}:  # without sides
            print(json.dumps(found, indent=2))
        else:
            show(found)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "lines": lines,
    }
    options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
