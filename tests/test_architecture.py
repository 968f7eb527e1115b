"""Imports go one way, and each room keeps to its trade."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "localrank_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# From which other rooms a room may import. Modules at the top are rooms of their own.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "archives": set(),
    "userimport": {"errors"},
    "seeds": set(),
    "layers": {"errors", "seeds"},
    "jacobian": {"errors", "layers"},
    "spectrum": {"errors", "layers", "jacobian"},
    "measures": {"errors", "layers", "jacobian", "spectrum"},
    "checkpoints": {"errors", "archives"},
    "model": {"errors", "userimport", "seeds"},
    "points": {"errors", "archives", "userimport"},
    "table": {"errors", "spectrum", "measures"},
    "pipeline": {
        "errors", "userimport", "seeds", "checkpoints", "model", "points", "table", "layers",
        "jacobian", "spectrum", "measures", "information",
    },
    "cluster": {"errors", "pipeline", "table"},
    "figures": {"errors", "table"},
    "report": {"errors", "table"},
    "api": {"errors", "pipeline", "table"},
    "information": set(),
    "experiments": {"errors", "pipeline", "table", "information", "model", "spectrum"},
    "cli": {
        "errors", "pipeline", "cluster", "table", "figures", "report", "experiments", "__init__",
    },
    "__main__": {"cli"},
    "__init__": {"api"},
}  # fmt: skip
NUMBERS = ("layers", "jacobian", "spectrum", "measures", "information")
# Reads of files, printing and tables have no place among the numbers.
NOT_AMONG_NUMBERS = {
    "pathlib", "os", "io", "sys", "json", "csv", "logging", "pandas", "rich", "typer",
    "safetensors", "subprocess", "tempfile", "shutil",
}  # fmt: skip
# sys.modules is where Conv1D of transformers is looked up without importing it.
EXCEPTIONS = {("layers/kinds.py", "sys")}
FOR_PERSONS = {"rich", "typer"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            # `from localrank_cli import x` may mean a module.
            names |= (
                {f"localrank_cli.{alias.name}" for alias in node.names}
                if node.module == "localrank_cli"
                else {node.module}
            )
    return names


def other_rooms(path: Path) -> set[str]:
    own = {name.split(".")[1] for name in imported(path) if name.startswith("localrank_cli.")}
    rooms = {name if name in ALLOWED else "__init__" for name in own}
    return rooms - {room(path)}


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_there_is_something_to_look_at() -> None:
    assert {room(path) for path in FILES} == set(ALLOWED)
    assert other_rooms(PACKAGE / "spectrum/spectra.py") >= {"jacobian", "layers"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    assert other_rooms(path) <= ALLOWED[room(path)]


def test_the_directions_have_no_circle() -> None:
    def reach(start: str, seen: tuple[str, ...] = ()) -> None:
        assert start not in seen, " -> ".join([*seen, start])
        for following in ALLOWED[start]:
            if (start, following) != ("cli", "__init__"):  # the version, looked up when asked for
                reach(following, (*seen, start))

    for start in ALLOWED:
        reach(start)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in NUMBERS], ids=name)
def test_numbers_know_no_files_and_print_nothing(path: Path) -> None:
    found = {module.split(".")[0] for module in imported(path)} & NOT_AMONG_NUMBERS
    assert {(name(path), module) for module in found} <= EXCEPTIONS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "open", "input"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "cli"], ids=name)
def test_only_the_command_line_talks_to_a_person(path: Path) -> None:
    assert not {module.split(".")[0] for module in imported(path)} & FOR_PERSONS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in {"print", "exit"})
            assert ast.unparse(node.func) not in {"sys.exit", "os._exit", "sys.stdout.write"}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "table"], ids=name)
def test_pandas_stays_in_its_file(path: Path) -> None:
    assert path.name in {
        "choose.py",
        "frame.py",
        "metrics.py",
        "read.py",
    } or "pandas" not in imported(path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_loaded_in_a_way_that_may_run_code(path: Path) -> None:
    """Pickles and user's code are opened in one place each."""
    text = path.read_text(encoding="utf-8")
    calls = {
        ast.unparse(node.func): ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
    }
    for banned in ("pickle.load", "pickle.loads", "eval", "exec", "joblib.load", "torch.hub.load"):
        assert banned not in calls
    if "torch.load" in calls:
        expected = "not trust_pickle" if name(path) == "checkpoints/formats.py" else "True"
        assert f"weights_only={expected}" in calls["torch.load"]
    if "np.load" in calls:
        assert "allow_pickle=False" in calls["np.load"]
    if any("import_module" in call or "exec_module" in call for call in calls):
        assert name(path) == "userimport.py"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):  # a command's options are not its work
            assert (node.end_lineno or 0) - node.body[0].lineno < 60, node.name


def test_tests_mirror_the_package() -> None:
    tests = Path(__file__).parent
    for path in FILES:
        parent = tests / path.relative_to(PACKAGE).parent
        assert path.parent == PACKAGE or list(parent.glob("test_*.py")), f"no tests for {path}"
