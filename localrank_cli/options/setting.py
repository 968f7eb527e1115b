"""The description of an option: how it is read, what it means, and where it may be written.

A table of options is a dataclass whose fields are `Annotated[type, Setting(...)]`. It generates
the command line (`cli/command.py`), the keys of localrank.toml (`folder.py`), the keywords of
`localrank_cli.analyze`, the settings that resuming compares, and the tables in the documentation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ForwardRef, get_args, get_origin

# Groups of the help, in its order.
MODEL = "Model and data"
MEASURE = "What to measure"
CHECKPOINTS = "Checkpoints"
OUTPUT = "Output"
RUNNING = "Running"
DANGER = "Dangerous options"
# What completes an option's value, if not words: the names of layers.
LAYERS = ("layers of the checkpoints",)
PANELS = (MODEL, MEASURE, CHECKPOINTS, OUTPUT, RUNNING, DANGER)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The metadata of an option's field.

    Args:
        help: One or two sentences for `--help`, `help(analyze)` and the documentation.
        metavar: The placeholder of the value in the help.
        default: The value of an option that is not set, if it is a constant.
        read: A reader of `parse.py`, called before the type is checked. Numbers and lists of them
            need none.
        advice: What to do about a value out of range.
        panel: Group of the help; None for the last one.
        is_common: Whether the short help shows it too.
        completes: Words that a shell offers for the value, beside those of a Literal; or LAYERS.
        flags: Names on the command line, if they differ from the field's.
        is_argument: Whether it has no flag on the command line.
        in_folder: Whether localrank.toml may hold it: it describes the folder or what is measured.
        in_python: Whether `localrank_cli.analyze` accepts it.
        in_inspect: Whether `localrank inspect` offers it.
        is_shared: Whether all workers of a divided analysis receive it unchanged.
        decides: The settings of the manifest that it decides; resuming compares them.
        only_chooses: Whether it decides no number, although localrank.toml may hold it: it chooses
            checkpoints, or the values of other options.
        needs_whole_series: Whether it cannot be applied while checkpoints are still to come, so
            that --follow refuses it.
    """

    help: str
    metavar: str = ""
    default: object = None
    read: Callable[[Any], object] | None = None
    advice: str = ""
    panel: str | None = None
    is_common: bool = False
    completes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    is_argument: bool = False
    in_folder: bool = False
    in_python: bool = True
    in_inspect: bool = True
    is_shared: bool = True
    decides: tuple[str, ...] = ()
    only_chooses: bool = False
    needs_whole_series: bool = False


@dataclass(frozen=True)
class Option:
    """A field of a table of options."""

    name: str  # the keyword in Python
    kind: Any  # the type; Any if only type checkers know it
    unset: Any  # the value of the field of an option that is not set
    setting: Setting = field(repr=False)

    @property
    def flag(self) -> str:
        """The name on the command line: `--data-scale`, or the placeholder of an argument."""
        if self.setting.is_argument:
            return self.setting.metavar
        return max(self.setting.flags, key=len, default=f"--{self.key}").partition("/")[0]

    @property
    def key(self) -> str:
        """The name in localrank.toml: `data-scale`."""
        return self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is a flag without a value."""
        return self.kind is bool or bool in get_args(self.kind)

    @property
    def in_live(self) -> bool:
        """Whether `local_rank` and `Monitor` accept it.

        A network in memory has no use for what chooses checkpoints, reads their files, or allows
        code that comes with them.
        """
        is_of_files = self.setting.is_argument or self.setting.panel in {CHECKPOINTS, DANGER}
        return self.setting.in_python and not is_of_files

    @property
    def is_several(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) is tuple

    @property
    def shown_default(self) -> object:
        """The value of an option that is not set; None if it depends on something."""
        if self.setting.default is not None:
            return self.setting.default
        return self.unset if self.is_switch else None

    @property
    def help(self) -> str:
        """The text for the user, with the default."""
        default = self.setting.default
        if default is None or self.is_switch:
            return self.setting.help
        return f"{self.setting.help} Default: {default}."


def options_of(table: type) -> Iterator[Option]:
    """Yield the options of a table in order: its fields with a `Setting`."""
    for one in fields(table):
        for setting in getattr(one.type, "__metadata__", ()):
            if isinstance(setting, Setting):
                # The setting leaves the type, and bounds beside it stay.
                kind, *bounds = (part for part in get_args(one.type) if part is not setting)
                kind = Any if isinstance(kind, ForwardRef) else kind
                for bound in bounds:
                    kind = Annotated[kind, bound]
                yield Option(one.name, kind, one.default, setting)
