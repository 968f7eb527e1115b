"""`python -m localrank_cli`, and the program `localrank`."""

from localrank_cli.searchpath import current_folder_last

# Before any other import, for the console script too: PYTHONPATH may hold an empty entry.
current_folder_last()

import signal  # noqa: E402  # after the search path is safe

# A Ctrl-C within the next imports would be a traceback of Python's.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from localrank_cli.cli.signals import exit_on_signals  # noqa: E402  # after the search path is safe


def main() -> None:
    """Run the program; the console script's entry."""
    # Before the first heavy import: a Ctrl-C within it would be a traceback of Python's.
    with exit_on_signals():
        from localrank_cli.cli.main import main as program  # noqa: PLC0415  # under the handler

        program()


if __name__ == "__main__":
    main()
