"""The same text means the same on the command line, in localrank.toml and in Python."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from localrank_cli import analyze
from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.options.decisive import DECISIVE
from localrank_cli.options.folder import KEYS, read_folder_settings
from localrank_cli.options.parse import Preset, Shard, StepRange
from localrank_cli.options.read import FLAGS, PYTHON, read_options, read_values
from localrank_cli.options.setting import DANGER, Option, options_of
from localrank_cli.options.table import AnalyzeOptions, SubmitOptions, check_options
from localrank_cli.points.draw import draw, sample
from tests.cli.program import invoke

OPTIONS = list(options_of(AnalyzeOptions))
MIB = 2**20

GOOD: list[tuple[str, object, object]] = [
    ("points", "8", 8),
    ("points", 1, 1),
    ("points", np.int64(3), 3),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("data_shape", "1x28x28", (1, 28, 28)),
    ("data_shape", " 3X8 ", (3, 8)),
    ("data_shape", "784", (784,)),
    ("data_shape", 784, (784,)),
    ("data_shape", [1, 28], (1, 28)),
    ("data_shape", torch.Size([2, 3]), (2, 3)),
    ("data_scale", "1/255", 1 / 255),
    ("data_scale", "3 / 4", 0.75),
    ("data_scale", "-2e3", -2000.0),
    ("noise", 2, 2.0),
    ("noise", "1e-9", 1e-9),
    ("layers", "0,", ("0",)),
    ("layers", " a , !b", ("a", "!b")),
    ("layers", ["a,b", "c"], ("a", "b", "c")),
    ("exclude", "head", ("head",)),
    ("atol", 0.5, (0.5,)),
    ("atol", "1e-300", (1e-300,)),
    ("atol", [0.1, "1"], (0.1, 1.0)),
    ("atol", np.float32(0.5), (0.5,)),
    ("atol", np.array([0.5, 1.0]), (0.5, 1.0)),
    ("atol", np.array(0.5), (0.5,)),
    ("rtol", "eps", (None,)),
    ("rtol", [" EPS ", 0.999, "1e-3"], (None, 0.999, 0.001)),
    ("memory", "2GiB", 2 * 2**30),
    ("memory", "512MB", 512 * 10**6),
    ("memory", "1.5G", 3 * 2**29),
    ("memory", "64 MiB", 64 * MIB),
    ("memory", "100m", 100 * MIB),
    ("memory", "1TiB", 2**40),
    ("memory", "20000000", 20_000_000),
    ("memory", "16MiB", 16 * MIB),
    ("memory", "40000KiB", 40_000 * 1024),
    ("device", "cuda:11", "cuda:11"),
    ("device", "cpu, cuda:1", "cpu, cuda:1"),
    ("device", "all", "all"),
    ("steps", "1:10", StepRange(1, 10)),
    ("steps", 5, StepRange(5, 5)),
    ("every", "3", 3),
    ("preset", "numpy", Preset.numpy),
    ("model_arg", ["a=[1, 2]", "b=x"], (("a", [1, 2]), ("b", "x"))),
    ("model_arg", {"a": 3}, (("a", 3),)),
    ("information", True, True),
    ("wrt", "", ""),
    ("shard", "1/8", Shard(1, 8)),
    ("checkpoints", "a", (Path("a"),)),
    ("checkpoints", Path("a"), (Path("a"),)),
    ("checkpoints", ["a", Path("b")], (Path("a"), Path("b"))),
]

# A value that is refused, and what was expected instead.
BAD: list[tuple[str, object, str]] = [
    ("points", 0, "expected at least 1"),
    ("points", "-5", "expected at least 1"),
    ("points", 8.0, "expected a whole number"),
    ("points", "8.0", "expected a whole number"),
    ("points", "1_0", "expected a whole number"),
    ("points", "9" * 5000, "expected a whole number"),
    ("points", True, "expected a whole number"),
    ("points", [8], "expected a whole number"),
    ("seed", 1.5, "expected a whole number"),
    ("seed", -1, "expected at least 0"),
    ("seed", 2**63, "expected at most 9223372036854775807"),
    ("data_shape", "28,28", "not of the form 1x28x28"),
    ("data_shape", "-1x28", "not of the form 1x28x28"),
    ("data_shape", "1x", "not of the form 1x28x28"),
    ("data_shape", "", "not of the form 1x28x28"),
    ("data_shape", "0x28", "has an axis without entries"),
    ("data_shape", [-1, 28], "has an axis without entries"),
    ("data_shape", (), "has an axis without entries"),
    ("data_shape", 2.5, "expected a whole number"),
    ("data_scale", "1/0", "expected a number, or a fraction such as 1/255"),
    ("data_scale", "1/2/3", "expected a number, or a fraction such as 1/255"),
    ("data_scale", "/", "expected a number, or a fraction such as 1/255"),
    ("data_scale", "x", "expected a number, or a fraction such as 1/255"),
    ("data_scale", 0, "expected a number other than 0"),
    ("data_scale", float("nan"), "expected a finite number"),
    ("noise", 0, "expected at least 1e-150"),
    ("noise", 1e308, "expected at most 1e+150"),
    ("noise", "inf", "expected a finite number"),
    ("noise", True, "expected a number"),
    ("noise", 10**400, "expected a number that fits in float64"),
    ("layers", 2, "expected a string or a list of strings"),
    ("layers", ["a", 3], "expected a string or a list of strings"),
    ("layers", "", "is empty"),
    ("layers", " , ", "is empty"),
    ("atol", 0, "expected more than 0"),
    ("atol", [0.1, -1], "expected more than 0"),
    ("atol", "nan", "expected a finite number"),
    ("atol", "x", "expected a number"),
    ("atol", [0.1, True], "expected a number"),
    ("rtol", 1, "expected less than 1"),
    ("rtol", [None, 1.5], "expected less than 1"),
    ("rtol", "epsilon", "expected a number, or eps"),
    ("rtol", "0,1", "expected a number, or eps"),
    ("rtol", 0, "expected more than 0"),
    ("memory", 1000, "expected at least 16777216"),
    ("memory", "15MiB", "expected at least 16777216"),
    ("memory", "", "expected a size"),
    ("memory", "-1GiB", "expected a size"),
    ("memory", "1e9", "expected a size"),
    ("memory", 1.5e9, "expected a whole number"),
    ("dtype", "float16", "unknown"),
    ("input_metric", "euclid", "unknown"),
    ("sigma_1", "half", "unknown"),
    ("step_from", "moon", "unknown"),
    ("on_error", "explode", "unknown"),
    ("preset", "moon", "unknown"),
    ("device", "gpu", "unknown"),
    ("device", "cuda:", "unknown"),
    ("device", "cuda:-1", "unknown"),
    ("device", "cpu:0", "unknown"),
    ("device", "auto,cpu", "unknown"),
    ("steps", "5:1", "contains no step"),
    ("steps", True, "expected a range of steps"),
    ("every", 0, "expected at least 1"),
    ("last", 0, "expected at least 1"),
    ("information", 1, "expected true or false"),
    ("information", "true", "expected true or false"),
    ("information_points", 1, "expected at least 2"),
    ("information_noise", 0, "expected more than 0"),
    ("model", 3, "expected a string, a class or a function"),
    ("model_arg", "a", "not of the form KEY=VALUE"),
    ("model_arg", 3, "expected a table"),
    ("data", object(), "expected a string, a path, a tensor or an array"),
    ("wrt", 3, "expected a string or a list of strings"),
    ("step_pattern", "run", "expected one {step}"),
    ("step_pattern", "{step}{step}", "expected one {step}"),
    ("shard", "8/8", "counting starts at 0"),
    ("checkpoints", 3, "expected a path"),
]  # fmt: skip


def option(name: str) -> Option:
    return next(one for one in OPTIONS if one.name == name)


def toml(value: object) -> str:
    """Return a value as TOML, if `can_be_toml`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else repr(value)


def can_be_toml(name: str, value: object) -> bool:
    plain = value if isinstance(value, list) else [value]
    types = (str, int, float, dict)
    return option(name).setting.in_folder and all(isinstance(one, types) for one in plain)


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_a_value_means_the_same_everywhere(
    tmp_path: Path, name: str, value: object, expected: object
) -> None:
    assert read_values(AnalyzeOptions, {name: value}, PYTHON) == {name: expected}
    if isinstance(value, str):
        typed = [value] if option(name).is_several else value
        assert read_values(AnalyzeOptions, {name: typed}, FLAGS) == {name: expected}
    if can_be_toml(name, value):
        (tmp_path / "localrank.toml").write_text(f"{option(name).key} = {toml(value)}\n")
        assert read_folder_settings(tmp_path).values == {name: expected}


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_wrong_value_is_refused_alike_everywhere(
    tmp_path: Path, name: str, value: object, expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_values(AnalyzeOptions, {name: value}, PYTHON)
    assert caught.value.what.startswith(f"{name}=")
    assert f": {expected}." in caught.value.what
    advice = caught.value.advice
    if isinstance(value, str):
        with pytest.raises(UsageError) as caught:
            read_values(AnalyzeOptions, {name: value}, FLAGS)
        assert caught.value.what.startswith(option(name).flag)
        assert caught.value.what.endswith(f": {expected}.")
        assert caught.value.advice == advice
    if can_be_toml(name, value):
        (tmp_path / "localrank.toml").write_text(f"{option(name).key} = {toml(value)}\n")
        with pytest.raises(SettingsError) as in_file:
            read_folder_settings(tmp_path)
        assert in_file.value.what.startswith(f"{tmp_path / 'localrank.toml'}: {option(name).key} =")
        assert in_file.value.what.endswith(f": {expected}.")
        assert in_file.value.advice == advice
        assert "\n" not in str(in_file.value)


def test_a_tolerance_of_zero_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError) as caught:
        read_values(AnalyzeOptions, {"atol": 0}, PYTHON)
    assert "rounding" in caught.value.advice
    assert "--rtol eps" in caught.value.advice


def test_a_list_of_words_is_named_in_the_advice() -> None:
    with pytest.raises(UsageError) as caught:
        read_values(SubmitOptions, {"cluster": "moon"}, FLAGS)
    assert str(caught.value) == "--cluster moon: unknown. Choose local or slurm."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": ()}, "no checkpoints were named"),
        ({"until": 5}, "--until without --follow"),
        ({"follow": True, "every": 1}, "--follow with --every: it is unknown"),
        ({"follow": True, "last": 2}, "--follow with --last: it is unknown"),
        ({"follow": True, "every": 2, "last": 2}, "--follow with --every and --last"),
        ({"follow": True, "shard": "0/2"}, "--follow with --shard"),
        ({"step_regex": "(.)", "step_pattern": "{step}"}, "--step-regex and --step-pattern"),
    ],
)
def test_options_that_exclude_one_another(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_options(read_options(AnalyzeOptions, {"checkpoints": "run"} | changes, FLAGS))


def test_iterators_are_read_once() -> None:
    found = read_values(AnalyzeOptions, {"layers": iter(["a", "b,c"])}, PYTHON)
    assert found == {"layers": ("a", "b", "c")}
    with pytest.raises(UsageError, match=r"layers=\[2\]: expected a string or a list"):
        read_values(AnalyzeOptions, {"layers": iter([2])}, PYTHON)


# The table is the one place where an option is declared.


def test_every_option_has_help() -> None:
    for one in OPTIONS:
        assert one.setting.help.endswith((".", "!")), one.name
        assert one.is_switch or one.setting.metavar, one.name
        default = one.setting.default
        if default is not None:
            assert read_values(AnalyzeOptions, {one.name: default}, PYTHON), one.name


def test_as_many_points_are_drawn_as_the_help_names() -> None:
    for drawn in (draw(torch.zeros(10**4, 1), None, 0, None, "x"), sample("normal", (1,), None, 0)):
        assert option("points").help.endswith(f" Default: {len(drawn.indices)}.")


def test_the_command_line_offers_every_option() -> None:
    text = invoke("analyze", "--help-all").stdout
    assert [
        one.name for one in OPTIONS if not one.setting.is_argument and one.flag not in text
    ] == []


def test_python_offers_every_option_that_is_not_about_files_and_terminals() -> None:
    signature = inspect.signature(analyze).parameters
    offered = [one for one in OPTIONS if one.setting.in_python]
    assert list(signature) == [one.name for one in offered]
    assert signature["noise"].default == 1.0
    assert signature["points"].default == 64
    assert signature["trust_model"].default is False
    page = inspect.getdoc(analyze) or ""
    assert all(f"{one.name}: {one.help}" in page for one in offered if one.name != "checkpoints")


def test_options_that_are_dangerous_or_about_the_machine_are_not_in_localrank_toml() -> None:
    """The folder may be another person's: it sets what to measure, and the user what to risk."""
    for one in KEYS.values():
        setting = one.setting
        assert setting.in_python, one.name  # else it is about files and terminals
        assert setting.is_shared, one.name  # else it is about this machine, or this run
        assert not setting.is_argument, one.name
        assert setting.panel != DANGER, one.name
    # A check that the user waives, and a pattern that may take forever to match.
    assert not {"allow_unsaved", "allow_small_cov", "on_error", "step_regex"} & {
        one.name for one in KEYS.values()
    }


def test_every_option_of_what_is_measured_is_compared_when_resuming() -> None:
    """Options of localrank.toml decide numbers, unless they only choose files or defaults."""
    for one in KEYS.values():
        assert bool(one.setting.decides) != one.setting.only_chooses, one.name
    assert {key for one in OPTIONS for key in one.setting.decides} <= set(DECISIVE)


def test_a_misspelt_keyword_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'tol'; did you mean 'atol' or 'rtol'"):
        analyze(tmp_path, tol=0.1)
    with pytest.raises(TypeError, match="'output': it is only for the command line"):
        analyze(tmp_path, output="x.csv")
    for nothing in (3, None):
        with pytest.raises(UsageError, match=f"checkpoints={nothing}: expected a path"):
            analyze(nothing)  # type: ignore[arg-type]  # what is tested
