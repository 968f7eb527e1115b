"""How many dimensions each layer of a network uses, and when that number falls."""

from localrank_cli.api import analyze

__version__ = "0.1.0"

__all__ = ["__version__", "analyze"]
