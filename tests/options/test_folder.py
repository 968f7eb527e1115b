import os
from pathlib import Path

import pytest

from localrank_cli.errors import SettingsError
from localrank_cli.options.folder import FolderSettings, inside, read_folder_settings
from localrank_cli.options.parse import Preset


def read(folder: Path, text: str) -> FolderSettings:
    (folder / "localrank.toml").write_text(text, encoding="utf-8")
    return read_folder_settings(folder)


def error_for(folder: Path, text: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        read(folder, text)
    assert caught.value.what.startswith(f"{folder / 'localrank.toml'}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_no_file(tmp_path: Path) -> None:
    assert read_folder_settings(tmp_path) == FolderSettings()


def test_many_keys(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        model = "model.py:Net"
        activation = "tanh"
        data = "digits.npz"
        data-key = "images"
        data-shape = "1x28x28"
        data-scale = 0.5
        points = 32
        seed = 7
        layers = ["fc*", "!fc3", "head, tail"]
        exclude = "x"
        wrt = "embed"
        atol = [0.01, 1]
        rtol = [0.1, "eps"]
        input-metric = "identity"
        noise = 2
        dtype = "float32"
        pattern = "*.pt"
        weights = "ema"
        step-from = "name"
        step-pattern = "run_{step}_v2"
        preset = "feng2022"
        input-slice = ":,8:24,8:24"
        output-slice = "-1,:"
        sigma-1 = "full"
        information = true
        information-points = 500
        information-noise = 0.03
        labels-key = "y"
        [model-arg]
        width = 3
        [columns]
        beta = 2.0
        name = "ä"
        n = 3
        """,
    )
    assert settings == FolderSettings(
        tmp_path / "localrank.toml",
        {
            "model": "model.py:Net",
            "model_arg": (("width", 3),),
            "activation": "tanh",
            "data": "digits.npz",
            "data_key": "images",
            "data_shape": (1, 28, 28),
            "data_scale": 0.5,
            "points": 32,
            "seed": 7,
            "layers": ("fc*", "!fc3", "head", "tail"),
            "exclude": ("x",),
            "wrt": "embed",
            "atol": (0.01, 1.0),
            "rtol": (0.1, None),
            "input_metric": "identity",
            "noise": 2.0,
            "dtype": "float32",
            "pattern": "*.pt",
            "weights": "ema",
            "step_from": "name",
            "step_pattern": "run_{step}_v2",
            "preset": Preset.feng2022,
            "input_slice": ":,8:24,8:24",
            "output_slice": "-1,:",
            "sigma_1": "full",
            "information": True,
            "information_points": 500,
            "information_noise": 0.03,
            "labels_key": "y",
        },
        {"beta": 2.0, "name": "ä", "n": 3},
    )


@pytest.mark.parametrize(
    "key",
    [
        "trust-model = true",
        "trust-pickle = true",
        "trust_pickle = true",
        "output = 'x.csv'",
        "device = 'cpu'",
        "step-regex = '(.)'",  # a regular expression from a folder could run forever
        "data_key = 'x'",
        "Model = 'x'",
        "labels = 'y'",
        "allow-small-cov = true",  # the user's own consent
        "allow-unsaved = true",  # the user's own consent
        "'' = 1",
        "[analyze]\nseed = 1",
    ],
)
def test_unknown_keys(tmp_path: Path, key: str) -> None:
    error = error_for(tmp_path, f"seed = 1\n{key}\n")
    assert "unknown key" in error.what
    assert "model, model-arg, activation, data" in error.advice


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("memory = '1GiB'", "'memory', which is only for the command line: --memory."),
        ("device = 'cpu'", "'device', which is only for the command line: --device."),
        ("trust-model = true", "'trust-model', which is only for the command line: --trust-model."),
        ("step-regex = '(.)'", "which is only for the command line; use step-pattern"),
        ("checkpoints = 'x'", "unknown key 'checkpoints', did you mean points?"),
        ("colums = 3", "did you mean columns?"),
    ],
)
def test_an_unknown_key_that_exists_elsewhere(tmp_path: Path, text: str, hint: str) -> None:
    assert hint in error_for(tmp_path, text).what


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert "unknown key 'seeds', did you mean seed?" in error_for(tmp_path, "seeds = 1").what


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("columns = 3", "expected a table"),
        ("[columns]\na = true", "expected a string or a number"),
        ("[columns]\na = [1]", "expected a string or a number"),
        ("[columns]\na = 2024-01-01", "expected a string or a number"),
        ("[columns]\na = 9223372036854775808", "expected an integer of 64 bits"),
        ("[columns]\nlocal_rank = 3", "columns.local_rank = 3: the name is taken"),
        ("[columns]\nmessage = 'x'", "the name is taken"),
        ("[columns]\n'' = 3", "not valid"),
        ('[columns]\n"a\\nb" = 3', "not valid"),
        ("seed = 2024-01-01", "expected a whole number"),
        ("data = true", "data = True: expected a string"),
        ("data = inf", "data = inf: expected a string"),
        ("data = [[1, 2], [3, 4]]", "expected a string"),
        ("data = {x = [[1, 2]]}", "expected a string"),
        ("data = 2024-01-01", "expected a string"),
    ],
)
def test_wrong_columns_and_types_of_toml_alone(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_for(tmp_path, text).what


@pytest.mark.parametrize("text", ["seed 1", "seed = 1\nseed = 2", "x = [" * 5000, "\0"])
def test_files_that_are_no_toml(tmp_path: Path, text: str) -> None:
    assert "cannot be read" in error_for(tmp_path, text).what


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "localrank.toml").write_bytes(b"data = '\xff'")
    with pytest.raises(SettingsError, match=r"localrank\.toml: cannot be read"):
        read_folder_settings(tmp_path)


class TestInside:
    @pytest.mark.parametrize("text", ["x.npz", "sub/x.npz", "./x.npz", "sub/../x.npz"])
    def test_paths_in_the_folder(self, tmp_path: Path, text: str) -> None:
        assert inside(tmp_path, text, "data") == (tmp_path / text).resolve()

    @pytest.mark.parametrize(
        "text", ["../x.npz", "sub/../../x.npz", "/etc/x.npz", "..", "link/x.npz", "file-link.npz"]
    )
    def test_paths_out_of_it(self, tmp_path: Path, text: str) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        (tmp_path / "x.npz").touch()
        (folder / "link").symlink_to(tmp_path)
        (folder / "file-link.npz").symlink_to(tmp_path / "x.npz")
        with pytest.raises(SettingsError, match="points outside the folder") as caught:
            inside(folder, text, "data")
        assert text in caught.value.what
        assert "--data" in caught.value.advice

    def test_a_folder_that_begins_alike_is_another(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        with pytest.raises(SettingsError, match="points outside"):
            inside(tmp_path / "run", f"..{os.sep}run2{os.sep}x.npz", "data")

    def test_values_that_are_no_path_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="is not a path"):
            inside(tmp_path, "a\0b.npz", "data")
