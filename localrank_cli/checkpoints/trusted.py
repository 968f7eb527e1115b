"""The `pickle_module` of torch.load for `--trust-pickle`, which runs the code of the file."""

import pickle
from types import ModuleType
from typing import Any, BinaryIO

_main: list[ModuleType] = []


def provide_main(module: ModuleType) -> None:
    """Let pickles find names of `__main__`, the script that saved them, in a module."""
    _main[:] = [module]


class NotImportableError(Exception):
    """A name that the pickle needs cannot be imported; the name is the message."""


class Unpickler(pickle.Unpickler):  # noqa: S301  # the user trusts the file
    """Python's unpickler, but names of `__main__` are also looked up in `provide_main`'s module."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the object of a name.

        Raises:
            NotImportableError: If it cannot be imported.
        """
        if module == "__main__":
            for provided in _main:
                if hasattr(provided, name):
                    return getattr(provided, name)
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise NotImportableError(f"{module}.{name}") from error


def load(file: BinaryIO, **options: Any) -> object:
    """Return the next object of a pickle, of which torch reads several in older files."""
    return Unpickler(file, **options).load()
