"""Everything the issue calls bad input: one clear error, the right status, nothing half-written."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import NET_CODE, Evil, entries, evil_code, net_weights, renamed, weights


def fails(folder: Path, *words: str, code: int = 1) -> Outcome:
    """Run with an output file, and check what holds for every error."""
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    before = entries(folder) if folder.is_dir() else []
    outcome = invoke("analyze", str(folder), *words, "-o", str(out / "ranks.csv"))
    assert outcome.code == code, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    what, _, advice = outcome.error.partition(". ")
    assert what
    assert advice, f"no advice: {outcome.error}"
    assert entries(out) == []
    left = set(entries(folder)) - {"__pycache__"} if folder.is_dir() else set()
    assert left == set(before) - {"__pycache__"}
    return outcome


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What code that must not run would create."""
    return tmp_path / "marker"


def damaged_safetensors(path: Path) -> None:
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-7])


def damaged_torch(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-99])


def damaged_legacy(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-7])


class TestFolders:
    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        assert "run: the folder is empty." in fails(tmp_path / "run", *QUICK).error

    def test_without_a_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/README.md").touch()
        assert (
            "run: holds no checkpoint; it holds README.md" in fails(tmp_path / "run", *QUICK).error
        )

    def test_not_there(self, tmp_path: Path) -> None:
        assert "run: there is no such file or folder" in fails(tmp_path / "run", *QUICK).error

    def test_without_data(self, series: Path) -> None:
        error = fails(series).error
        assert "no data to take points from" in error
        assert "--data" in error

    def test_two_checkpoints_of_one_step(self, series: Path) -> None:
        save_file(weights(), series / "model_5.safetensors")
        error = fails(series, *QUICK).error
        assert "model_5.safetensors" in error
        assert "step_5.safetensors" in error
        assert "both step 5" in error
        assert "--pattern" in error

    def test_a_name_without_a_step(self, series: Path) -> None:
        save_file(weights(seed=99), series / "final.safetensors")
        error = fails(series, *QUICK).error
        assert "no step was found for final.safetensors" in error
        assert "--pattern" in error
        words = ("analyze", str(series), *QUICK, "--pattern", "step_*")
        assert invoke(*words).code == 0


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "write"),
        [
            ("step_7.safetensors", damaged_safetensors),
            ("step_7.pt", damaged_torch),
            ("step_7.bin", damaged_legacy),
            ("step_7.ckpt", lambda path: path.write_bytes(b"")),
        ],
    )
    def test_truncated(self, series: Path, name: str, write: Callable[[Path], object]) -> None:
        write(series / name)
        error = fails(series, *QUICK).error
        assert f"{series / name}: " in error
        assert "--pattern" in error

    @pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
    @pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
    def test_a_pickle_that_would_run_code(
        self, series: Path, marker: Path, suffix: str, form: str
    ) -> None:
        path = series / f"step_7.{suffix}"
        if form == "pickle":
            path.write_bytes(pickle.dumps(Evil(marker)))
        else:
            torch.save(
                {"model": weights(), "x": Evil(marker)},
                path,
                _use_new_zipfile_serialization=form == "zip",
            )
        error = fails(series, *QUICK).error
        assert f"step_7.{suffix}" in error
        assert form == "pickle" or "posix.system" in error
        assert not marker.exists()


class TestFolderSettings:
    @pytest.mark.parametrize("key", ["model", "data"])
    @pytest.mark.parametrize("form", ["file", "package"])
    def test_code_in_the_folder_does_not_run(
        self, series: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, key: str, form: str
    ) -> None:
        then = "import torch\nNet = lambda: torch.nn.Identity()\npoints = torch.rand(9, 4)\n"
        module = f"evil_{key}_{form}"
        (series / f"{module}.py").write_text(evil_code(marker, then))
        monkeypatch.chdir(series)  # where a package would be found
        place = {"file": f"{module}.py", "package": module}[form]
        name = {"model": "Net", "data": "points"}[key]
        (series / "localrank.toml").write_text(f"{key} = '{place}:{name}'\n")
        words = QUICK if key == "model" else ()
        error = fails(series, *words).error
        assert f"names code to run, {place}:{name}" in error
        assert "--trust-model" in error
        assert not marker.exists()
        invoke("analyze", str(series), *words, "--trust-model")
        assert marker.exists()  # the code of this test would do what it must not

    def test_trust_does_not_reach_out_of_the_folder(self, series: Path, marker: Path) -> None:
        (series.parent / "evil.py").write_text(evil_code(marker))
        (series / "link.py").symlink_to(series.parent / "evil.py")
        for place in ("../evil.py", str(series.parent / "evil.py"), "link.py"):
            (series / "localrank.toml").write_text(f"model = '{place}:Net'\n")
            assert "points outside the folder" in fails(series, *QUICK, "--trust-model").error
        assert not marker.exists()

    def test_a_pickle_is_never_trusted_by_a_file(self, series: Path) -> None:
        (series / "localrank.toml").write_text("trust-pickle = true\n")
        assert "localrank.toml: unknown key 'trust-pickle'" in fails(series, *QUICK).error

    def test_data_outside(self, series: Path) -> None:
        (series / "localrank.toml").write_text("data = '../x.npz'\n")
        assert "data = '../x.npz' points outside the folder" in fails(series).error


def change(**tensors: Tensor | None) -> dict[str, Tensor]:
    names = {key.replace("_", ".", 1): value for key, value in tensors.items()}
    state = weights() | {key: value for key, value in names.items() if value is not None}
    return {key: value for key, value in state.items() if names.get(key, value) is not None}


class TestWeights:
    @pytest.mark.parametrize(
        ("state", "parts"),
        [
            (change(**{"2_bias": None}), ["missing: 2.bias"]),
            (change(**{"4_weight": torch.ones(2, 2)}), ["unexpected: 4.weight"]),
            (
                change(**{"2_weight": torch.ones(5, 3)}),
                ["2.weight has shape [5, 3], expected [2, 3]"],
            ),
            (
                renamed(weights(), "layer"),
                ["missing: 0.weight (nearest in the file: layer0.weight)", "unexpected: layer0."],
            ),
        ],
    )
    def test_keys_that_do_not_fit(
        self, series: Path, state: dict[str, Tensor], parts: list[str]
    ) -> None:
        torch.save({"model": state}, series / "step_77.pt")
        error = fails(series, *QUICK).error
        assert "step_77.pt (step 77): the weights do not fit the model" in error
        for part in parts:
            assert part in error


class TestModel:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        torch.save(net_weights(), folder / "step_1.pt")
        return folder

    @pytest.mark.parametrize(
        ("code", "name", "parts"),
        [
            ("import nope_bad_input", "Net", ["cannot be imported (line 1): ModuleNotFoundError"]),
            ("def f(:", "Net", ["cannot be imported: SyntaxError"]),
            ("import sys\nsys.exit(0)", "Net", ["cannot be imported (line 2): SystemExit: 0"]),
            (NET_CODE, "Network", ["has no 'Network'", "It has: torch, nn, Net"]),
            (
                NET_CODE.replace("width=3", "width"),
                "Net",
                ["missing a required argument: 'width'", "--model-arg NAME=VALUE"],
            ),
            (NET_CODE + "\nx = 3", "x", ["is a int, not an nn.Module class"]),
            (NET_CODE + "\ndef f(): return 3", "f", ["returned a int"]),
            (NET_CODE + "\ndef f(): exit()", "f", ["failed: SystemExit"]),
            (NET_CODE.replace("return self.b", "exit(0)\n        return"), "Net", ["sys.exit(0)"]),
            (NET_CODE.replace("return self.b", "return self.c"), "Net", ["no attribute 'c'"]),
        ],
    )
    def test_files(self, folder: Path, code: str, name: str, parts: list[str]) -> None:
        (folder.parent / "net.py").write_text(code)
        error = fails(folder, *QUICK, "--model", f"{folder.parent}/net.py:{name}").error
        for part in parts:
            assert part in error

    def test_no_such_file(self, folder: Path) -> None:
        assert "there is no file nope.py" in fails(folder, *QUICK, "--model", "nope.py:Net").error

    def test_no_such_package(self, folder: Path) -> None:
        error = fails(folder, *QUICK, "--model", "nope_bad_input.net:Net").error
        assert "nope_bad_input.net cannot be imported: ModuleNotFoundError" in error

    def test_an_argument_that_is_not_taken(self, folder: Path) -> None:
        (folder.parent / "net.py").write_text(NET_CODE)
        words = ("--model", f"{folder.parent}/net.py:Net", "--model-arg", "depth=3")
        error = fails(folder, *QUICK, *words).error
        assert "cannot be called with depth=3" in error
        assert "width=3" in error

    def test_weights_that_are_no_plain_mlp(self, folder: Path) -> None:
        torch.save({"conv.weight": torch.ones(2, 2, 3, 3)}, folder / "step_1.pt")
        error = fails(folder, *QUICK).error
        assert "conv.weight [2, 2, 3, 3]" in error
        assert "--model path/to/file.py:name" in error


class TestData:
    @pytest.mark.parametrize(
        ("array", "words", "parts"),
        [
            (np.ones((70, 5)), [], ["5 values each; the first layer '0' takes 4"]),
            (np.ones((70, 2, 3)), [], ["shape (2, 3), 6 values each"]),
            (np.ones(70), [], ["1 values each"]),
            (np.ones((70, 4), dtype=np.uint8), [], ["integers", "--data-scale"]),
            (np.full((70, 4), "x"), [], ["has dtype <U1"]),
            (np.ones((70, 4), dtype=complex), [], ["has dtype complex128"]),
            (np.ones((10, 4)), ["--points", "11"], ["11 points were asked for, but there are 10"]),
            (np.ones((0, 4)), [], ["holds no points"]),
            (np.full((70, 4), np.nan), [], ["point 0 has the value nan"]),
            (np.full((70, 4), np.inf), [], ["point 0 has the value inf"]),
            (np.ones((70, 4)), ["--data-key", "x"], ["--data-key x", "without a name"]),
            (np.full((70, 4), 1e300), ["--data-scale", "1e300"], ["multiplied by 1e+300"]),
        ],
    )
    def test_arrays(
        self, series: Path, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
        words: list[str], parts: list[str],
    ) -> None:  # fmt: skip
        np.save(series.parent / "x.npy", array)
        error = fails(series, "--data", str(series.parent / "x.npy"), *words).error
        for part in parts:
            assert part in error

    def test_no_such_file(self, series: Path) -> None:
        assert "nope.npz: there is no such data file" in fails(series, "--data", "nope.npz").error

    def test_pickles_do_not_run(self, series: Path, marker: Path) -> None:
        path = series.parent / "x.npy"
        np.save(path, np.array([Evil(marker)], dtype=object), allow_pickle=True)
        assert "x.npy: cannot be read" in fails(series, "--data", str(path)).error
        path = series.parent / "x.pt"
        torch.save({"x": torch.ones(70, 4), "y": Evil(marker)}, path)
        assert "x.pt: cannot be read" in fails(series, "--data", str(path)).error
        assert not marker.exists()


class TestLayers:
    @pytest.mark.parametrize("pattern", ["fc*", "fc1", "0,nope", "*.weight", "[", "!nope"])
    def test_that_match_nothing(self, series: Path, pattern: str) -> None:
        error = fails(series, *QUICK, "--layers", pattern).error
        assert "Layers that run: 0 (Linear), 2 (Linear)" in error

    def test_that_never_run(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        code = NET_CODE.replace("self.name,", "self.idle = nn.Linear(1, 1); self.name,")
        (tmp_path / "net.py").write_text(code)
        idle = {"idle.weight": torch.ones(1, 1), "idle.bias": torch.ones(1)}
        torch.save(net_weights() | idle, folder / "step_1.pt")
        words = (*QUICK, "--model", f"{tmp_path}/net.py:Net")
        error = fails(folder, *words, "--layers", "idle").error
        assert "layer 'idle' never runs" in error
        assert "a (Linear), b (Linear)" in error
        assert invoke("analyze", str(folder), *words).code == 0

    def test_wrt_something_else(self, series: Path) -> None:
        assert "nope" in fails(series, *QUICK, "--wrt", "nope").error


def test_wrong_usage_is_2(series: Path) -> None:
    assert "--atol 0" in fails(series, *QUICK, "--atol", "0", code=2).error
    assert "--activation x" in fails(series, *QUICK, "--activation", "x", code=2).error
