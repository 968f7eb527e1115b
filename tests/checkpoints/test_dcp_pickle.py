"""No `.metadata` runs code, by any of pickle's ways to name or call something."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localrank_cli import analyze
from localrank_cli.checkpoints.dcp import DcpMetadata, DcpTensor, read_metadata, unpickle
from localrank_cli.errors import UnreadableError
from tests.checkpoints.layouts import LAYOUTS
from tests.helpers import Evil


def written(folder: Path, data: bytes) -> Path:
    path = folder / ".metadata"
    path.write_bytes(data)
    return path


def torch_global(name: str) -> bytes:
    return f"ctorch.distributed.checkpoint.metadata\n{name}\n".encode()


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_name(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = written(tmp_path, pickle.dumps(Evil(marker), protocol=protocol))
    with pytest.raises(UnreadableError, match=r"needs code to load: posix\.system\."):
        unpickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the pickle of this test would run
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("torch", "load"),
        ("torch", "hub"),
        ("torch", "ops"),
        ("torch", "float32.__class__"),
        ("torch.serialization", "load"),
        ("collections", "deque"),
        ("pathlib", "Path"),
        ("torch.distributed.checkpoint.metadata", "Metadata.__init__"),
        ("torch.distributed.checkpoint.metadata", "os"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("localrank_cli.checkpoints.dcp", "pickle"),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, module: str, name: str) -> None:
    for data in (
        f"c{module}\n{name}\n.".encode(),
        b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
        + b"\x93.",
        f"i{module}\n{name}\n.".encode(),
    ):
        with pytest.raises(UnreadableError, match=r"\.metadata: (needs code|not the metadata)"):
            unpickle(written(tmp_path, data))


def test_names_of_the_registry_of_extensions(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="not the metadata"):
        unpickle(written(tmp_path, b"\x80\x02\x82\x01."))


def test_no_attribute_of_a_class_can_be_set(tmp_path: Path) -> None:
    # BUILD on the class itself, with a tuple of a dict and of slots.
    for name in ("MetadataIndex", "Metadata", "TensorStorageMetadata"):
        data = torch_global(name) + b"(N(S'planner_data'\nI1\nS'__eq__'\nN" + b"dtb."
        with pytest.raises(UnreadableError, match="not the metadata"):
            unpickle(written(tmp_path, data))
    assert DcpMetadata.planner_data is None
    assert not hasattr(DcpTensor, "planner_data")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x80\x04.",
        b"]" * 10_000,
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x8e" + b"\xff" * 8,  # a text of 2^64 bytes
        b"\x8f",
        b"Ppersistent\n.",
        b"I" + b"9" * 10_000 + b"\n.",
    ],
)
def test_bytes_that_are_no_metadata(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"\.metadata: not the metadata of torch") as caught:
        read_metadata(written(tmp_path, data))
    assert "\n" not in str(caught.value)


class Wraps:
    """Sound metadata beside a call."""

    def __init__(self, sound: bytes, marker: Path) -> None:
        self.sound, self.marker = sound, marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def test_the_whole_program_runs_no_code_of_a_folder(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    series = tmp_path / "run"
    layout = LAYOUTS["torch.distributed.checkpoint"]
    for step in (1, 2):
        series.mkdir(exist_ok=True)
        layout.write(series, step)
    path = series / "step_2/.metadata"
    path.write_bytes(pickle.dumps(Wraps(path.read_bytes(), marker)))
    with pytest.raises(UnreadableError, match=r"step_2/\.metadata: needs code to load"):
        analyze(series, data="normal:4")
    with pytest.raises(UnreadableError, match="needs code to load"):
        analyze(series, data="normal:4", trust_pickle=True)  # there is no way round
    assert not marker.exists()


def test_torchs_own_reader_is_not_imported(tmp_path: Path) -> None:
    LAYOUTS["torchtitan"].write(tmp_path, 1)
    code = (
        "import sys; from pathlib import Path\n"
        "from localrank_cli.checkpoints.dcp import read_dcp\n"
        f"assert read_dcp(Path({str(tmp_path / 'step-1/.metadata')!r})).step == 1\n"
        "print('torch.distributed.checkpoint.filesystem' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", done.stderr
