"""Turns what was typed into options, for every command that plans an analysis."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from localrank_cli.cli.command import globs
from localrank_cli.errors import UsageError
from localrank_cli.options.parse import Part, parse_shard, parse_steps
from localrank_cli.options.table import (
    AnalyzeOptions,
    Follow,
    check_options,
    parse_rtol,
    parse_size,
)
from localrank_cli.results.plan_file import read_plan_file


def options_from(given: Mapping[str, Any]) -> AnalyzeOptions:
    """Makes options of a command's arguments, and checks what can be seen without a file.

    Args:
        given: The command's parameters by name; others than options are passed over, and what a
            command does not offer keeps its default.

    Returns:
        The options.
    """
    plain = {field.name for field in fields(AnalyzeOptions)}
    values = {name: value for name, value in given.items() if name in plain}
    memory, shard = given.get("memory"), given.get("shard")
    steps, until = given.get("steps"), given.get("until")
    if until is not None and not given.get("follow"):
        raise UsageError("--until without --follow.", "Give both, or choose steps with --steps.")
    values |= {
        "checkpoints": tuple(given["checkpoints"]),
        "model_args": tuple(_keyword(text) for text in given["model_arg"] or []),
        "layers": globs(given["layers"], "--layers"),
        "exclude": globs(given["exclude"], "--exclude"),
        "atol": tuple(given["atol"] or []),
        "rtol": tuple(parse_rtol(text) for text in given["rtol"] or []),
        "memory": parse_size(memory) if memory is not None else None,
        "part": Part(
            parse_steps(steps) if steps is not None else None,
            given.get("every", 1),
            given.get("last"),
        ),
        "shard": parse_shard(shard, os.environ) if shard is not None else None,
        "frozen": read_plan_file(given["plan"]) if given.get("plan") is not None else None,
        "follow": Follow(until) if given.get("follow") else None,
    }
    options = AnalyzeOptions(**values)
    check_options(options)
    return options


def do_not_spin() -> None:
    """Lets threads that wait sleep; for this process and those that it starts."""
    # Threads that wait by spinning take the cores that others work on: on a busy machine the demo
    # took 20 s so and takes 6 s with threads that sleep. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"--model-arg {text}: not of the form KEY=VALUE.")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or more than Python reads: a text
        return key, value
