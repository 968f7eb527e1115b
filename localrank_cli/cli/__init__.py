"""The command line: the only room that prints or exits."""

from localrank_cli.cli.main import app, main

__all__ = ["app", "main"]
