"""Imports go one way, and each room keeps to its trade."""

import ast
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "localrank_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# From which other rooms a room may import. Modules at the top are rooms of their own.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "archives": set(),
    "recorded": set(),
    "files": set(),
    "searchpath": set(),
    "drawing": set(),
    "seeds": set(),
    "threads": set(),
    "validation": {"errors"},
    "machine": {"errors"},
    "userimport": {"errors", "searchpath"},
    "walk": {"userimport"},
    "layers": {"errors", "seeds", "walk"},
    "jacobian": {"errors", "threads", "layers"},
    "spectrum": {"errors", "threads", "layers", "jacobian"},
    "intervals": {"errors", "layers", "jacobian", "spectrum"},
    "measures": {"errors", "threads", "layers", "jacobian", "spectrum", "intervals"},
    "information": set(),
    "checkpoints": {"errors", "archives", "files", "recorded"},
    "model": {"errors", "files", "recorded", "userimport", "seeds", "walk"},
    "points": {"errors", "archives", "checkpoints", "userimport", "seeds"},
    "remote": {"errors", "archives", "checkpoints"},
    "results": {
        "errors", "files", "validation", "machine", "layers", "spectrum", "intervals", "measures",
    },
    "options": {
        "errors", "files", "validation", "userimport", "checkpoints", "model", "points", "layers",
        "spectrum", "intervals", "measures", "results",
    },
    "run": {
        "errors", "machine", "userimport", "seeds", "options", "checkpoints", "model", "points",
        "results", "layers", "jacobian", "spectrum", "intervals", "measures", "information",
        "recorded", "compress", "remote",
    },
    "compress": {"errors", "seeds", "layers", "measures"},
    "divide": {
        "errors", "machine", "searchpath", "options", "run", "results", "measures", "intervals",
    },
    "compare": {"errors", "results"},
    "figures": {"errors", "drawing", "measures", "results", "compare"},
    "report": {"errors", "measures", "results"},
    "live": {
        "errors", "machine", "seeds", "walk", "options", "checkpoints", "model", "points",
        "results", "run",
    },
    "callbacks": {"errors", "live"},
    "plotting": {"errors", "drawing", "options", "results", "figures"},
    "api": {"errors", "options", "run", "divide", "results", "live", "plotting", "remote"},
    "experiments": {
        "errors", "threads", "drawing", "options", "run", "results", "information", "model",
        "spectrum", "live", "compress", "figures",
    },
    "cli": {
        "errors", "machine", "searchpath", "drawing", "options", "run", "divide", "results",
        "compare", "figures", "plotting", "report", "experiments", "remote", "__init__",
    },
    "__main__": {"cli", "searchpath"},
    "__init__": {"api", "live", "searchpath"},
}  # fmt: skip
NUMBERS = (
    "layers", "jacobian", "spectrum", "intervals", "measures", "information", "compress",
)  # fmt: skip
# Reads of files, printing and tables have no place among the numbers.
NOT_AMONG_NUMBERS = {
    "pathlib", "os", "io", "sys", "json", "csv", "logging", "pandas", "rich", "typer",
    "safetensors", "subprocess", "tempfile", "shutil",
}  # fmt: skip
# sys.modules is where Conv1D of transformers is looked up without importing it, and where it is
# found which objects are the user's own.
EXCEPTIONS = {("layers/kinds.py", "sys"), ("layers/restore.py", "sys")}
FOR_PERSONS = {"rich", "typer"}
MAY_USE_PANDAS = {"results/choose.py", "results/read.py", "results/tensorboard.py"}
LONGEST_FUNCTION = 60  # lines of its body


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
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


def packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)}


def other_rooms(path: Path) -> set[str]:
    own = {name.split(".")[1] for name in imported(path) if name.startswith("localrank_cli.")}
    rooms = {name if name in ALLOWED else "__init__" for name in own}
    return rooms - {room(path)}


@cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """What a file calls, and each whole call."""
    nodes = ast.walk(tree(path))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def violations(check: Callable[[Path], object], *rooms: str, but: str = "") -> dict[str, object]:
    """File -> what it does against a rule, of the files of some rooms, or of all but one."""
    chosen = [
        path for path in FILES if (room(path) in rooms if rooms else not but or room(path) != but)
    ]
    assert chosen
    return {name(path): found for path in chosen if (found := check(path))}


def test_there_is_something_to_look_at() -> None:
    assert {room(path) for path in FILES} == set(ALLOWED)
    assert other_rooms(PACKAGE / "spectrum/layer.py") >= {"jacobian", "layers"}


def test_imports_go_one_way() -> None:
    assert violations(lambda path: other_rooms(path) - ALLOWED[room(path)]) == {}


def test_the_directions_have_no_circle() -> None:
    def reach(start: str, seen: tuple[str, ...] = ()) -> None:
        assert start not in seen, " -> ".join([*seen, start])
        for following in ALLOWED[start]:
            if (start, following) != ("cli", "__init__"):  # the version, looked up when asked for
                reach(following, (*seen, start))

    for start in ALLOWED:
        reach(start)


def test_numbers_know_no_files_and_print_nothing() -> None:
    def foreign(path: Path) -> set[str]:
        modules = {
            m for m in packages(path) & NOT_AMONG_NUMBERS if (name(path), m) not in EXCEPTIONS
        }
        return modules | ({call for call, _ in calls(path)} & {"print", "open", "input"})

    assert violations(foreign, *NUMBERS) == {}


def test_only_the_command_line_talks_to_a_person_or_exits() -> None:
    talking = {"print", "exit", "sys.exit", "os._exit", "sys.stdout.write"}

    def talk(path: Path) -> set[str]:
        return packages(path) & FOR_PERSONS | {call for call, _ in calls(path)} & talking

    assert violations(talk, but="cli") == {}


def test_pandas_stays_where_tables_are_read() -> None:
    users = violations(lambda path: "pandas" in packages(path), "results")
    assert set(users) <= MAY_USE_PANDAS


def test_nothing_is_loaded_in_a_way_that_may_run_code() -> None:
    """Pickles and user's code are opened in one place each."""
    banned = {"pickle.load", "pickle.loads", "eval", "exec", "joblib.load", "torch.hub.load"}

    def dangerous(path: Path) -> list[str]:
        # These take the place of pickle; `trusted` runs code, where the user says so.
        safe = ("pickle_module=pickles", "pickle_module=trusted")
        is_theirs = name(path) == "checkpoints/torch_file.py"
        return [
            ast.unparse(whole)
            for call, whole in calls(path)
            if call in banned
            or (
                call == "torch.load"
                and not (is_theirs and any(one in ast.unparse(whole) for one in safe))
            )
            or (call == "np.load" and "allow_pickle=False" not in ast.unparse(whole))
            or (
                ("import_module" in call or "exec_module" in call) and name(path) != "userimport.py"
            )
        ]

    assert violations(dangerous) == {}


def test_functions_do_one_thing() -> None:
    def long(path: Path) -> list[str]:
        return [
            node.name
            for node in ast.walk(tree(path))
            if isinstance(node, ast.FunctionDef)  # a command's options are not its work
            and (node.end_lineno or 0) - node.body[0].lineno >= LONGEST_FUNCTION
        ]

    assert violations(long) == {}


def undocumented(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            is_overload = "overload" in map(ast.unparse, child.decorator_list)
            if child.name.startswith("_") or is_overload:
                pass
            elif ast.get_docstring(child) is None:
                yield child.name
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child)


def test_public_methods_of_private_classes_have_docstrings_too() -> None:
    """Of public classes ruff requires it (D101 to D103)."""
    assert violations(lambda path: list(undocumented(tree(path)))) == {}


SUPPRESSION = re.compile(
    r"# (type: ignore|(ruff: )?noqa|pragma: no cover)(\[[^]]*\]|: [A-Z0-9, ]+)?"
)


def unexplained(path: Path) -> list[int]:
    """Lines that silence a tool and do not say why, after all of their codes."""
    if not SUPPRESSION.search(path.read_text(encoding="utf-8")):
        return []  # to split a file into tokens takes many times as long
    with tokenize.open(path) as file:
        comments = [
            token
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT and SUPPRESSION.search(token.string)
        ]
    reasons = {one.start[0]: SUPPRESSION.sub("", one.string).strip(" #") for one in comments}
    return [
        line
        for line, reason in reasons.items()
        if reason in {"as above", "fmt: skip"} or len(reason.split()) < 2
    ]


def test_what_silences_a_tool_says_why() -> None:
    """On its line, or in pyproject.toml where several share one reason."""
    folders = ("localrank_cli", "tests", "benchmarks", "docs", "sample_checkpoints")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert {str(path): lines for path in files if (lines := unexplained(path))} == {}
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    start = settings.index("[tool.ruff.lint.per-file-ignores]") + 1
    before = ""
    for line in settings[start : settings.index("", start)]:
        assert "#" in line + before, line
        before = line if line.startswith("#") else ""


@pytest.mark.parametrize(
    ("line", "is_explained"),
    [
        ("x = 1  # noqa: E501", False),
        ("x = 1  # noqa: E501, PLC0415  # a long name", True),
        ("x = 1  # type: ignore[misc]  # noqa: E501", False),
        ("x = 1  # type: ignore[misc, arg-type]  # noqa: E501  # torch has no stub", True),
        ("x = 1  # type: ignore", False),
        ("x = 1  # pragma: no cover", False),
        ("x = 1  # noqa: E501  # as above", False),
        ("x = 1  # noqa: E501  # slow", False),
        ("x = '# noqa'  # a text", True),
    ],
)
def test_a_suppression_without_a_reason_is_found(
    tmp_path: Path, line: str, is_explained: bool
) -> None:
    (tmp_path / "one.py").write_text(line + "\n")
    assert (unexplained(tmp_path / "one.py") == []) is is_explained
