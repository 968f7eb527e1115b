"""The program `localrank`: its commands, and the exit status of every exception."""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from localrank_cli.cli.analyze import analyze
from localrank_cli.cli.cache import cache
from localrank_cli.cli.compare import compare
from localrank_cli.cli.compress import compress
from localrank_cli.cli.export import export
from localrank_cli.cli.help import Group
from localrank_cli.cli.inspect import inspect
from localrank_cli.cli.merge import merge
from localrank_cli.cli.plot import plot
from localrank_cli.cli.report import report
from localrank_cli.cli.reproduce import reproduce
from localrank_cli.cli.rethreshold import rethreshold
from localrank_cli.cli.show import show
from localrank_cli.cli.signals import (
    CodeExit,
    Interrupted,
    discard_stdout,
    exits_refused,
    open_missing_streams,
)
from localrank_cli.cli.submit import submit
from localrank_cli.cli.words import broken, width_of
from localrank_cli.divide.parent import tie_to_parent
from localrank_cli.errors import (
    MORE_FILES,
    MORE_MEMORY,
    BudgetError,
    LocalrankError,
    OutputError,
    cause,
    is_out_of_files,
    is_out_of_memory,
    printable,
    shortened,
    status_of_signal,
)

_COMPLETION = "_LOCALRANK_COMPLETE"  # as the scripts of typer set it
_BUG = 70  # EX_SOFTWARE of sysexits.h
_CLOSED_PIPE = status_of_signal(signal.SIGPIPE)
_LONGEST = 2000  # letters of a line; the longest path of Linux has 4096, which is hardly ever used
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_LIMITS = (
    (is_out_of_memory, "memory ran out", MORE_MEMORY),
    (is_out_of_files, "too many files are open", MORE_FILES),
)
_REPORT = (
    "This is a bug in localrank: please report it with the output of the same command and --debug."
)


class _ClosedPipeError(Exception):
    pass


class _Program(Group):
    """Turn every exception into one line and an exit status."""

    runs_command = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line and exit, or return the command's result if not in standalone mode."""
        if _COMPLETION in os.environ:  # a shell asks
            return super().main(*args, **kwargs)
        standalone = kwargs.get("standalone_mode", True)
        kwargs["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **kwargs)
        sys.exit(self._status(args, kwargs))

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            _ClosedPipeError: If the reader of stdout has gone; typer itself would exit with 1.
        """
        self.runs_command = True
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ClosedPipeError from error
        except KeyboardInterrupt as error:
            # The user's code raised it: a signal raises Interrupted. typer would exit silently.
            raise _ended(error) from error

    def _status(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        # Read --debug from the words, since the command line may not parse.
        words = args[0] if args else kwargs.get("args")
        debug = "--debug" in (sys.argv[1:] if words is None else words)
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(None if debug else _Brief())
        try:
            with exits_refused():
                status = super().main(*args, **kwargs)
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except BaseException as error:  # the one place that maps errors to statuses
            if isinstance(error, SystemExit) and not self.runs_command:
                return int(error.code or 0)  # of typer's own options
            return _failure(error, debug)


class _Brief(logging.Formatter):
    """A warning of a library in one line, without the traceback that it may come with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message alone."""
        return printable(record.getMessage())


def _failure(error: BaseException, debug: bool) -> int:
    if isinstance(error, Interrupted):
        _say(f"stopped by {error.name}")
        return error.exit_code
    if _is_closed_pipe(error):
        discard_stdout()
        return _CLOSED_PIPE
    if debug:
        with suppress(OSError):  # stdout is closed already
            sys.stderr.write(_traceback(error))
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        discard_stdout()
        error = OutputError(
            f"standard output: cannot be written ({error.strerror}).",
            "Free some space, or redirect it elsewhere.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        error = LocalrankError(
            f"{shortened(error.filename)}: cannot be used ({error.strerror}).",
            "Give a shorter name.",
        )
    error = _of_a_limit(error)
    if not isinstance(error, Exception):
        error = _ended(error)
    if isinstance(error, BudgetError):
        _say("error: " + error.lines[0], *error.lines[1:])
        return error.exit_code
    if isinstance(error, LocalrankError):
        _say(f"error: {error}")
        return error.exit_code
    # A usage error of click, which some versions of typer bundle.
    if hasattr(error, "format_message"):
        return _usage_error(error)
    _say(f"error: {LocalrankError(f'{type(error).__name__}: {error}', _REPORT)}")
    return _BUG


def _ended(error: BaseException) -> LocalrankError:
    """Return the error for an exception that only the user's code raises."""
    how = cause(error)
    if isinstance(error, SystemExit):
        how = str(error) if isinstance(error, CodeExit) else f"sys.exit({error.code!r})"
    return LocalrankError(
        f"the model's or the data's code ended the program ({how}).",
        "Make it return, or raise an Exception, instead.",
    )


def _of_a_limit(error: BaseException) -> BaseException:
    """Return an error with what helps if the system gave no more, whatever was being done."""
    for kind, what, advice in _LIMITS:
        if _is_from(error, kind):
            if not isinstance(error, LocalrankError):
                return LocalrankError(f"{what} ({cause(error)}).", advice)
            found = LocalrankError(error.what, advice)
            found.exit_code = error.exit_code
            return found
    return error


def _is_from(error: BaseException | None, kind: Callable[[BaseException], bool]) -> bool:
    """Return whether an error of one kind is the cause of an error."""
    seen: list[BaseException] = []
    # A library may raise an error from itself: such a chain has no end.
    while error is not None and not any(error is one for one in seen):
        if kind(error):
            return True
        seen.append(error)
        error = error.__cause__
    return False


def _traceback(error: BaseException) -> str:
    """Format a traceback with one line per message, since messages hold names from files."""
    lines: list[str] = []
    for part in traceback.format_exception(error):
        if part.startswith("  "):  # a frame: where it is, and its source
            indents = [line[: len(line) - len(line.lstrip())] for line in part.splitlines()]
            lines += map(str.__add__, indents, map(printable, part.splitlines()))
        else:
            lines.append(printable(part))
    return "".join(f"{line}\n" for line in lines)


def _is_closed_pipe(error: BaseException) -> bool:
    # typer turns a BrokenPipeError into a SystemExit while it prints help.
    return isinstance(error, (BrokenPipeError, _ClosedPipeError)) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


def _usage_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "localrank"
    message = " ".join(str(error.format_message()).split())
    # A prefix of some versions of typer.
    message = message.replace("Value error, ", "").rstrip(".")
    end = "" if message.endswith(("?", "!")) else "."
    _say(f"error: {message}{end} See '{path} --help'.")
    return 2


def _say(text: str, *more: str) -> None:
    try:
        lines = [_bounded(printable(line)) for line in (f"localrank: {text}", *more)]
        width = width_of(sys.stderr)
        if width is not None:
            lines = [broken(line, width) for line in lines]
        sys.stderr.write("".join(line + "\n" for line in lines))
        sys.stderr.flush()
    except OSError:
        pass  # stderr is closed


def _bounded(line: str) -> str:
    """Return a line without its middle if it is too long: a name from a file may have any length.

    Its end says what to do.
    """
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST * 3 // 4]} [...] {line[-_LONGEST // 4 :]}"


app = typer.Typer(
    name="localrank",
    cls=_Program,
    help="Measure how many dimensions each layer of a network uses, and when that number falls.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from localrank_cli import __version__

        typer.echo(f"localrank {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


for command in (
    analyze,
    inspect,
    plot,
    show,
    report,
    export,
    compare,
    rethreshold,
    submit,
    merge,
    compress,
    cache,
    reproduce,
):
    command.add_to(app)


def main() -> None:
    """Run the program, within `exit_on_signals` (`localrank_cli.__main__`)."""
    open_missing_streams()
    tie_to_parent()
    app(prog_name="localrank")
