"""Import of an object that the user named: `path/to/file.py:name` or `package.module:name`."""

import contextlib
import functools
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from localrank_cli.errors import LocalrankError, one_line
from localrank_cli.searchpath import current_folder_last

# The user's code may raise any of these; a script that parses its arguments on import exits.
ANY_FAULT = (Exception, SystemExit)

_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARIES = (
    "<frozen",
    *(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")),
    f"{Path(__file__).parent}/",
)

# Modules beside an imported file -> their folder. Two series may bring files of the same name.
_beside: dict[str, Path] = {}
# Modules of libraries, so that each is recognized once.
_of_libraries: dict[str, ModuleType] = {}


class CodeError(LocalrankError):
    """The user's code cannot be imported, or has no such name."""


@dataclass(frozen=True)
class CodeSpec:
    """The place of an object."""

    place: str  # a .py file, or a module's dotted name
    name: str

    @property
    def is_file(self) -> bool:
        """Whether the place is a file."""
        return self.place.endswith(".py")

    @classmethod
    def parse(cls, text: str) -> "CodeSpec | None":
        """Return the place in a text `place:name`, or None when the text has no such form."""
        place, colon, name = text.rpartition(":")
        if not colon or not place or not name.replace(".", "_").isidentifier():
            return None
        if place.endswith(".py") or all(part.isidentifier() for part in place.split(".")):
            return cls(place, name)
        return None


def import_object(spec: CodeSpec, option: str) -> object:
    """Return the object in a module, which is imported; `option` is for messages.

    Raises:
        CodeError: If the module cannot be imported or has no such name.
    """
    module = _from_file(spec, option) if spec.is_file else _from_package(spec, option)
    found: object = module
    for part in spec.name.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            raise CodeError(
                f"{option} {spec.place}:{spec.name}: {spec.place} has no {part!r}.",
                f"It has: {', '.join(names[:12]) or 'nothing'}.",
            )
        found = getattr(found, part)
    return found


@dataclass
class SecondImport:
    """A second import of an object's module, and of the user's own modules that it imports.

    What a module computes once (global variables, class attributes, default arguments, caches of
    functions) is computed again. The modules of the first import stay in sys.modules.
    """

    spec: CodeSpec
    _modules: dict[str, ModuleType] = field(default_factory=dict)

    def load(self, option: str) -> object:
        """Return the object, imported again.

        Raises:
            CodeError: If the module cannot be imported a second time.
        """
        self._modules = {}
        with self.active():
            return import_object(self.spec, option)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let imports within find the second modules."""
        own = {name: sys.modules.pop(name) for name in self._own()}
        path, beside = list(sys.path), dict(_beside)
        places = [
            (sys.modules.get(name.rpartition(".")[0]), name, one) for name, one in own.items()
        ]
        before = set(sys.modules)
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            self._modules = {name: sys.modules.pop(name) for name in self._own(before)}
            sys.modules.update(own)
            sys.path[:] = path
            _beside.clear()
            _beside.update(beside)
            for parent, name, one in places:  # an import makes a module an attribute of its package
                if parent is not None:
                    setattr(parent, name.rpartition(".")[2], one)

    def _own(self, but: Container[str] = ()) -> list[str]:
        """Return the names of the user's modules: those below the folder of the module."""
        place = self.spec.place
        if self.spec.is_file:
            folder, named = Path(place).resolve().parent, {_module_name(Path(place))}
        else:
            top = getattr(sys.modules.get(place.partition(".")[0]), "__file__", None)
            origin = Path(top or Path.cwd() / place.partition(".")[0] / "__init__.py").resolve()
            folder = origin.parent.parent if origin.name == "__init__.py" else origin.parent
            named = {place}
        below = {name for name, file in _users_files() if _is_below(file, folder)}
        return [
            name
            for name in {*named, *below} - {"__main__"}
            if name in sys.modules and name not in but
        ]


@functools.cache
def is_library(file: str) -> bool:
    """Return whether code is Python's own, an installed package's or localrank's."""
    return file.startswith(_LIBRARIES) or bool(_INSTALLED & set(Path(file).parts))


def _users_files() -> list[tuple[str, str]]:
    """Return the names and files of the imported modules that belong to no library."""
    found = []
    for name, module in list(sys.modules.items()):
        # A forward pass asks each time, and nearly all of thousands of modules are of libraries.
        if _of_libraries.get(name) is module:
            continue
        file = _file_of(module)
        if file is not None and not is_library(file):
            found.append((name, file))
        elif file is not None or not isinstance(module, ModuleType):
            _of_libraries[name] = module
    return found


def _file_of(module: ModuleType) -> str | None:
    found = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    return found if isinstance(found, str) else None


@functools.lru_cache(maxsize=4096)
def _is_below(file: str, folder: Path) -> bool:
    return Path(file).is_relative_to(folder) or Path(file).resolve().is_relative_to(folder)


def _module_name(path: Path) -> str:
    return f"localrank_user_{path.stem}"


def _from_file(spec: CodeSpec, option: str) -> ModuleType:
    path = Path(spec.place).resolve()
    if not path.is_file():
        raise CodeError(f"{option}: there is no file {spec.place}.", "Check the path.")
    module_name = _module_name(path)
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise CodeError(f"{option}: {spec.place} cannot be imported.", "Is it a Python file?")
    module = importlib.util.module_from_spec(module_spec)
    # Registered before it runs, as `import` does: dataclasses and pickles look their module up.
    sys.modules[module_name] = module
    try:
        with _folder_on_path(path.parent), contextlib.chdir("."):
            module_spec.loader.exec_module(module)
    except ANY_FAULT as error:
        sys.modules.pop(module_name, None)
        raise _does_not_import(spec, option, error) from error
    return module


@contextlib.contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours as in `python file.py`, and not those of another file."""
    for name, place in list(_beside.items()):
        if place != folder:
            sys.modules.pop(name, None)
            del _beside[name]
    before = set(sys.modules)
    text = str(folder)
    elsewhere = [entry for entry in sys.path if entry != text]
    sys.path[:] = [text, *elsewhere]
    try:
        yield
    finally:
        # The folder stays last on the path: imports inside functions find it, and it hides nothing.
        sys.path[:] = [*(entry for entry in sys.path if entry != text), text]
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).is_relative_to(folder):
                _beside[name] = folder


def _from_package(spec: CodeSpec, option: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    current_folder_last()
    try:
        with contextlib.chdir("."):
            _import_from_here(spec.place.partition(".")[0])
            return importlib.import_module(spec.place)
    except ANY_FAULT as error:
        raise _does_not_import(spec, option, error) from error


def _import_from_here(name: str) -> None:
    """Import a top-level module of the current folder, if it is there, and nothing else from it.

    What the module imports in turn is looked for in the current folder last: a `numpy.py` there
    hides nothing.
    """
    if name in sys.modules:
        return
    found = PathFinder.find_spec(name, [str(Path.cwd())])
    # A folder without __init__.py counts only where there is no real package of its name.
    if found is None or found.loader is None or found.origin is None:
        return
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:  # raised again, without half a module
        sys.modules.pop(name, None)
        raise


def _does_not_import(spec: CodeSpec, option: str, error: BaseException) -> CodeError:
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if spec.is_file and trace.tb_frame.f_code.co_filename == str(Path(spec.place).resolve()):
            line = f" (line {trace.tb_lineno})"
        trace = trace.tb_next
    return CodeError(
        f"{option}: {spec.place} cannot be imported{line}: {type(error).__name__}:"
        f" {one_line(error)}",
        "Run it with python to see the whole traceback, or pass --debug.",
    )
