"""Measure how many dimensions each layer of a network uses, and when that number falls."""

from localrank_cli.searchpath import current_folder_last, is_program

if is_program():  # before any other import
    current_folder_last()

TYPE_CHECKING = False  # typing is not loaded for this alone
if TYPE_CHECKING:
    from localrank_cli.api import analyze, inspect, local_rank, merge, plot, rethreshold
    from localrank_cli.live.monitor import Monitor

__version__ = "0.1.0"

__all__ = [
    "Monitor",
    "__version__",
    "analyze",
    "inspect",
    "local_rank",
    "merge",
    "plot",
    "rethreshold",
]
_OF_API = {"analyze", "inspect", "local_rank", "merge", "plot", "rethreshold"}


def __getattr__(name: str) -> object:
    # Imported on first use, so that the start of the program imports nothing else.
    if name in _OF_API:
        from localrank_cli import api

        return getattr(api, name)
    if name == "Monitor":
        from localrank_cli.live.monitor import Monitor

        return Monitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
