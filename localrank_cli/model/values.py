"""The config that a network is given where the code has no class for it: recorded values."""

from collections.abc import Iterator, Mapping
from typing import Any

from localrank_cli.errors import ModelError


class Values(dict[str, Any]):
    """Values by name, as items and as attributes, so that either kind of config is served.

    Each config has a class of its own, which knows why some of its values are not passed: code that
    asks for one of those gets an error, never a default of its own.
    """

    refused: Mapping[str, str]  # name -> why it is not passed
    asked: set[str]  # names that the network's code has asked for
    owner: str = ""  # what holds the values, for messages

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        # vars(config) and attributes: one place for both.
        object.__setattr__(self, "__dict__", self)

    @staticmethod
    def open(
        values: Mapping[str, Any], owner: str, refused: Mapping[str, str], asked: set[str]
    ) -> "Values":
        """Return a config for a network that is being built.

        Names that are asked for are added to `asked`.
        """
        given = type("Values", (Values,), {"owner": owner, "refused": refused, "asked": asked})
        made: Values = type("Values", (_Open, given), {"given": given})(values)
        return made

    def give(self) -> None:
        """End the watch, once the network is built: what reads the values then is not its code."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and dict.__contains__(self, name):
            return self[name]
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        self._ask(name)
        raise AttributeError(f"{self.owner} has no {name!r}")

    def __getitem__(self, name: str) -> Any:
        self._ask(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or a default."""
        self._ask(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a value and return it, or a default."""
        self._ask(name)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a value, or a default that is kept."""
        self._ask(name)
        return super().setdefault(name, default)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str):
            self._ask(name)
        return super().__contains__(name)

    def _ask(self, name: str) -> None:
        if name in self.refused:
            raise ModelError(
                f"{self.owner}: {name} {self.refused[name]}, and the network's code asks for it.",
                "Write a function that builds the network with the right value, and name it:"
                " --model FILE.py:make.",
            )
        if dict.__contains__(self, name):
            self.asked.add(name)


class _Open(Values):
    """A config whose network is being built: going through all values asks for each."""

    given: type[Values]

    def give(self) -> None:
        """Become a config that can be walked through without asking for anything."""
        # Without the methods below, which the walks over what a network holds would call.
        self.__class__ = type(self).given  # type: ignore[assignment]  # mypy allows no change of class

    def __iter__(self) -> Iterator[str]:
        self._ask_all()
        return super().__iter__()

    def keys(self) -> Any:
        """Return all names, each of which counts as asked for."""
        self._ask_all()
        return super().keys()

    def values(self) -> Any:
        """Return all values, each of which counts as asked for."""
        self._ask_all()
        return super().values()

    def items(self) -> Any:
        """Return all items, each of which counts as asked for."""
        self._ask_all()
        return super().items()

    def _ask_all(self) -> None:
        for name in [*self.refused, *dict.keys(self)]:
            self._ask(name)
