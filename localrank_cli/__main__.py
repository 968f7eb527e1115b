"""`python -m localrank_cli`, and the program `localrank`."""

from localrank_cli.cli.signals import leaving_at_once


def main() -> None:
    """Runs the program; the console script's entry."""
    # Before the first heavy import: a Ctrl-C within it would be a traceback of Python's.
    with leaving_at_once():
        from localrank_cli.cli.main import main as program  # noqa: PLC0415  # as said above

        program()


if __name__ == "__main__":
    main()
