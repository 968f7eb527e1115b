"""What a shell completes: values of options, and names of layers.

Nothing here imports torch, runs code or reads weights: the names come from the headers of
safetensors files alone.
"""

from collections.abc import Callable
from pathlib import Path

import typer

from localrank_cli.options.read import words_of_literal
from localrank_cli.options.setting import LAYERS, Option
from localrank_cli.run.layer_names import layers_in


def completion_of(option: Option) -> Callable[..., list[str]] | None:
    """Return what completes an option's value; None if the shell's own file names do."""
    values = option.setting.completes or tuple(words_of_literal(option.kind))
    if values == LAYERS:
        return _layers
    if not values:
        return None

    def complete(incomplete: str) -> list[str]:
        """Return the values that begin with what is typed."""
        return [one for one in values if one.startswith(incomplete)]

    return complete


def _layers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return lists of layers whose last name begins like that of a list."""
    before, comma, last = incomplete.rpartition(",")
    mark = "!" if last.startswith("!") else ""
    # Where an option still lacks its value, typer leaves the words before it unread.
    paths = [*(ctx.params.get("checkpoints") or ()), *ctx.args]
    names = sorted({name for path in paths for name in layers_in(Path(path))})
    return [f"{before}{comma}{mark}{one}" for one in names if one.startswith(last[len(mark) :])]
