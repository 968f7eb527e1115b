from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.parse import Preset
from localrank_cli.options.resolve import Settings, check_names, resolve, with_folder
from localrank_cli.options.table import AnalyzeOptions

FOLDER = Path("/series")
FLAGS = AnalyzeOptions(checkpoints=(FOLDER,), data="normal:4")
FILE = FOLDER / "localrank.toml"
NONE = FolderSettings()


def settings(flags: dict[str, Any], own: dict[str, Any]) -> Settings:
    """Return the settings of a series whose file holds `own`, and names data unless `own` does."""
    options = replace(AnalyzeOptions(checkpoints=(FOLDER,)), **flags)
    columns = own.pop("columns", {})
    values = {
        name: value for name, value in ({"data": "own.npz"} | own).items() if value is not None
    }
    series = with_folder(options, FolderSettings(FILE, values, columns), FOLDER)
    check_names(series)
    return resolve(series)


def test_defaults() -> None:
    found = resolve(with_folder(FLAGS, NONE, FOLDER))
    assert found.model.is_inferred
    assert found.model.activation == "relu"
    assert [tolerance.label for tolerance in found.tolerances] == ["atol=0.01"]
    assert found.noise == 1.0
    assert found.dtype == torch.float64
    assert found.dtype_name == "float64"
    assert (found.selection.include, found.selection.exclude, found.selection.wrt) == ((), (), "")
    assert (found.source.count, found.source.seed, found.source.scale) == (None, 0, None)
    assert found.columns == {}


@pytest.mark.parametrize(
    ("flags", "own", "read", "expected"),
    [
        ({}, {"seed": 3}, lambda s: s.source.seed, 3),
        ({"seed": 0}, {"seed": 3}, lambda s: s.source.seed, 0),
        ({}, {"points": 3}, lambda s: s.source.count, 3),
        ({"points": 5}, {"points": 3}, lambda s: s.source.count, 5),
        ({}, {"noise": 3.0}, lambda s: s.noise, 3.0),
        ({"noise": 2.0}, {"noise": 3.0}, lambda s: s.noise, 2.0),
        ({}, {"dtype": "float32"}, lambda s: s.dtype, torch.float32),
        ({"dtype": "float64"}, {"dtype": "float32"}, lambda s: s.dtype, torch.float64),
        ({}, {"activation": "tanh"}, lambda s: s.model.activation, "tanh"),
        ({"activation": "gelu"}, {"activation": "tanh"}, lambda s: s.model.activation, "gelu"),
        ({}, {"wrt": "a"}, lambda s: s.selection.wrt, "a"),
        ({"wrt": ""}, {"wrt": "a"}, lambda s: s.selection.wrt, ""),
        ({}, {"layers": ("a", "!b")}, lambda s: s.selection.include, ("a",)),
        ({}, {"layers": ("a", "!b")}, lambda s: s.selection.exclude, ("b",)),
        ({"layers": ("c",)}, {"layers": ("a", "!b")}, lambda s: s.selection.include, ("c",)),
        ({"layers": ("c",)}, {"layers": ("a", "!b")}, lambda s: s.selection.exclude, ()),
        ({"exclude": ("c",)}, {"layers": ("!b",)}, lambda s: s.selection.exclude, ("b", "c")),
        ({}, {"data_key": "k"}, lambda s: s.source.key, "k"),
        ({"data_key": "f"}, {"data_key": "k"}, lambda s: s.source.key, "f"),
        ({}, {"data_scale": 2.0}, lambda s: s.source.scale, 2.0),
        ({"data_scale": 3.0}, {"data_scale": 2.0}, lambda s: s.source.scale, 3.0),
        ({}, {"columns": {"beta": 1}}, lambda s: s.columns, {"beta": 1}),
    ],
)
def test_a_flag_beats_the_file_and_the_file_beats_the_default(
    flags: dict[str, Any], own: dict[str, Any], read: Any, expected: object
) -> None:
    assert read(settings(flags, own)) == expected


def test_other_data_replace_the_files_settings_of_its_own() -> None:
    own = {"data_key": "k", "data_shape": (2, 2), "data_scale": 2.0, "points": 3}
    found = settings({"data": "normal:4"}, own)
    assert (found.source.text, found.source.key, found.source.scale) == ("normal:4", "", None)
    assert found.source.shape is None
    assert found.source.count == 3


def test_another_model_replaces_the_files_arguments() -> None:
    own = {"model": "m.py:Net", "model_arg": (("width", 3),)}
    assert settings({"model": "my.py:Net"}, own).model.arguments == {}
    found = settings({"trust_model": True, "model_arg": (("depth", 2),)}, own).model
    assert found.arguments == {"width": 3, "depth": 2}
    assert found.code is not None
    assert found.code.place == "/series/m.py"


@pytest.mark.parametrize(
    ("flags", "own", "labels"),
    [
        ({}, {"atol": (0.1,)}, ["atol=0.1"]),
        ({}, {"atol": (0.1,), "rtol": (None,)}, ["atol=0.1", "rtol=eps"]),
        ({"rtol": (0.5,)}, {"atol": (0.1,)}, ["rtol=0.5"]),
        (
            {"rtol": (None, 0.5), "atol": (1.0, 0.1)},
            {},
            ["atol=1", "atol=0.1", "rtol=eps", "rtol=0.5"],
        ),
        ({"atol": (0.1, 0.1)}, {}, ["atol=0.1"]),
    ],
)
def test_tolerances(flags: dict[str, Any], own: dict[str, Any], labels: list[str]) -> None:
    assert [tolerance.label for tolerance in settings(flags, own).tolerances] == labels


class TestCodeRunsOnlyWhenAskedFor:
    @pytest.mark.parametrize("model", ["m.py:Net", "sub/m.py:Net", "package.module:Net"])
    def test_a_model_in_the_file(self, model: str) -> None:
        with pytest.raises(SettingsError, match="names code to run") as caught:
            settings({}, {"model": model})
        assert model in caught.value.what
        assert "localrank.toml" in caught.value.what
        assert "--trust-model" in caught.value.advice
        assert settings({"trust_model": True}, {"model": model}).model.code is not None

    @pytest.mark.parametrize("data", ["d.py:points", "package.module:points"])
    def test_data_in_the_file(self, data: str) -> None:
        with pytest.raises(SettingsError, match="names code to run"):
            settings({}, {"data": data})
        assert settings({"trust_model": True}, {"data": data}).source.code is not None

    def test_code_named_by_a_flag_is_asked_for(self) -> None:
        found = settings({"model": "x.py:Net", "data": "d.py:points"}, {"model": "evil.py:Net"})
        assert found.model.code is not None
        assert found.model.code.place == "x.py"

    @pytest.mark.parametrize("key", ["model", "data"])
    @pytest.mark.parametrize("place", ["../m.py", "/abs/m.py"])
    def test_trusted_code_stays_in_the_folder(self, key: str, place: str) -> None:
        with pytest.raises(SettingsError, match=f"{key} = '{place}' points outside the folder"):
            settings({"trust_model": True}, {key: f"{place}:x"})

    def test_a_plain_mlp_needs_no_trust(self) -> None:
        assert settings({}, {"activation": "tanh"}).model.is_inferred


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"data": None}, "no data to take points from"),
        ({"data": "x.csv"}, "x.csv: not a valid form"),
        ({"data": "../x.npz"}, "data = '../x.npz' points outside the folder"),
        ({"activation": "swish"}, "activation = swish: unknown"),
        ({"model": "Net"}, "model = Net: not of the form"),
        ({"model_arg": (("a", 1),)}, "--model-arg was given without --model"),
    ],
)
def test_settings_that_are_wrong(own: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings({"trust_model": True}, own)
    assert message in caught.value.what
    assert "/series" in caught.value.what or "model_arg" in own


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "Net"},
        {"model": "m.py"},
        {"model": "m.py:"},
        {"model": ""},
        {"model": "a-b.c:Net"},
        {"activation": "swish"},
        {"activation": ""},
        {"data": "x.csv"},
        {"data": ""},
    ],
)
def test_flags_without_a_known_form_are_wrong_usage(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_names(with_folder(replace(FLAGS, **flags), NONE, FOLDER))


def test_flags_of_a_known_form() -> None:
    given = replace(FLAGS, model="a/b.py:Net", activation="gelu", data="x.npz")
    check_names(with_folder(given, NONE, FOLDER))


def test_an_activation_beside_a_model_is_noted() -> None:
    found = settings({"model": "m.py:Net", "activation": "tanh"}, {})
    assert found.notes == ("--activation is ignored: the model's own code decides",)
    assert settings({"model": "m.py:Net"}, {"activation": "tanh"}).notes == ()


def test_a_class_from_python() -> None:
    found = settings({"model": nn.Identity}, {"model": "evil.py:Net"}).model
    assert found.factory is nn.Identity
    assert found.description == "Identity"
    assert not found.is_inferred


def test_data_named_by_the_folder_are_no_checkpoints() -> None:
    own = FolderSettings(FILE, {"data": "own.npz"})
    assert with_folder(FLAGS, own, FOLDER).data_files == [FOLDER / "own.npz"]
    assert with_folder(FLAGS, NONE, FOLDER).data_files == []


PATELS = {"preset": Preset.patel2024}


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        (PATELS, {}, ((0.01,), 128, True)),
        (PATELS, {"atol": (0.5,), "points": 3, "layers": ("a",)}, ((0.01,), 128, True)),
        (PATELS | {"atol": (0.5,), "points": 7, "layers": ("fc*",)}, {}, ((0.5,), 7, False)),
        (PATELS | {"rtol": (0.5,)}, {"atol": (0.1,)}, ((), 128, True)),
        ({}, PATELS | {"points": 3}, ((0.01,), 3, True)),
        ({}, PATELS | {"atol": (0.5,), "layers": ("a",)}, ((0.5,), 128, False)),
        ({"layers": ("a",), "points": 9}, PATELS, ((0.01,), 9, False)),
        ({"preset": Preset.numpy}, PATELS, ((), None, False)),
        ({}, {}, ((), None, False)),
    ],
)
def test_a_flag_beats_a_preset_which_beats_the_file_which_beats_its_preset(
    flags: dict[str, Any], own: dict[str, Any], expected: tuple[object, ...]
) -> None:
    given = replace(AnalyzeOptions(checkpoints=(FOLDER,)), **flags)
    found = with_folder(given, FolderSettings(FILE, own), FOLDER).options
    assert (found.atol, found.points, found.hidden) == expected


@pytest.mark.parametrize(
    ("flags", "own", "names"),
    [
        ({}, {"step_pattern": "run_{step}_v2"}, {"run_5_v2.pt": 5, "run_12_v2": 12}),
        ({"step_pattern": "{step}-x"}, {"step_pattern": "run_{step}"}, {"run_7-x": 7}),
        ({"step_regex": r"r(\d+)"}, {"step_pattern": "run_{step}"}, {"r3_run_7": 3}),
        ({"step_pattern": ""}, {"step_pattern": "run_{step}"}, {"run_7": None}),
        ({}, {"step_pattern": ""}, {"run_7": None}),
        ({}, {"step_pattern": "v2{step}"}, {"v2150": 150}),
        ({}, {"step_pattern": "(.*){step}"}, {"(.*)4": 4, "a4": None}),
        ({}, {"step_pattern": "a{step}"}, {"b5a": None, "a\u0661": None}),
    ],
)
def test_steps_by_a_pattern(
    flags: dict[str, Any], own: dict[str, Any], names: dict[str, int | None]
) -> None:
    given = replace(AnalyzeOptions(checkpoints=(FOLDER,)), **flags)
    rule = with_folder(given, FolderSettings(FILE, own), FOLDER).step_rule
    assert {name: rule.names.step(name) for name in names} == names


@pytest.mark.parametrize(
    ("flags", "own", "layers", "exclude"),
    [
        ({}, {"exclude": ("0",)}, (), ("0",)),
        ({"layers": ("0",)}, {"exclude": ("0",)}, ("0",), ()),
        ({"layers": ("0",)}, {"layers": ("*", "!0"), "exclude": ("0",)}, ("0",), ()),
        ({"exclude": ("2",)}, {"layers": ("0",), "exclude": ("0",)}, ("0",), ("2",)),
        ({"layers": ("*",), "exclude": ("2",)}, {"exclude": ("0",)}, ("*",), ("2",)),
        ({}, {"layers": ("*",), "exclude": ("0",)}, ("*",), ("0",)),
    ],
)
def test_layers_of_the_user_replace_what_the_file_excludes(
    flags: dict[str, Any], own: dict[str, Any], layers: tuple[str, ...], exclude: tuple[str, ...]
) -> None:
    given = replace(AnalyzeOptions(checkpoints=(FOLDER,)), **flags)
    found = with_folder(given, FolderSettings(FILE, own), FOLDER).options
    assert (found.layers, found.exclude) == (layers, exclude)
