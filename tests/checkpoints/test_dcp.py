import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from localrank_cli.checkpoints.dcp import read_dcp
from localrank_cli.checkpoints.reading import files_of, read_checkpoint
from localrank_cli.errors import LocalrankError, UnreadableError
from tests.checkpoints.dcp_writer import save_dcp
from tests.helpers import Evil, weights

BIG = {"w": torch.arange(35.0).reshape(7, 5), "b": torch.arange(4), "s": torch.tensor(2.5)}


def saved(folder: Path, state: dict[str, Any], **options: Any) -> Path:
    save_dcp(folder / "step_1", state, **options)
    return folder / "step_1/.metadata"


def assert_same(state: Any, wanted: Any) -> None:
    assert sorted(state) == sorted(wanted)
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_pieces_are_put_together(tmp_path: Path, parts: int) -> None:
    path = saved(tmp_path, {"model": BIG}, parts=parts)
    assert_same(read_dcp(path).states["model"], BIG)
    assert len(files_of(path)) >= min(parts, 2)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64]
)
def test_types(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a.weight": torch.arange(6).reshape(2, 3).to(dtype)}
    path = saved(tmp_path, {"model": state}, parts=2)
    assert_same(read_dcp(path).states["model"], state)
    assert read_dcp(path, header_only=True).states["model"]["a.weight"].dtype == dtype


def test_a_header_needs_no_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": BIG}, parts=2)
    for file in path.parent.glob("*.distcp"):
        file.write_bytes(b"\xff" * file.stat().st_size)
    state = read_checkpoint(path, header_only=True).states["model"]
    assert all(tensor.is_meta for tensor in state.values())
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in BIG.items()}
    with pytest.raises(UnreadableError, match=r"\.distcp: model\.\w is not readable at byte"):
        read_checkpoint(path)


OPTIMIZER = {"state": {"0.weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 4)}}}


class TestWhereTheWeightsAre:
    @pytest.mark.parametrize(
        ("state", "place"),
        [
            ({"model": weights(), "optim": OPTIMIZER}, "model"),
            ({"state_dict": weights(), "optimizer": OPTIMIZER}, "state_dict"),
            ({"app": {"model": weights(), "optim": OPTIMIZER}}, "app.model"),
            (weights(), ""),
            ({**weights(), "optimizer": OPTIMIZER, "step": 5}, ""),
            ({**weights(), "train_state": {"step": torch.tensor(5)}}, ""),
        ],
    )
    def test_place(self, tmp_path: Path, state: dict[str, Any], place: str) -> None:
        content = read_dcp(saved(tmp_path, state))
        assert list(content.states) == [place]
        assert_same(content.states[place], weights())

    def test_names_that_were_not_flattened(self, tmp_path: Path) -> None:
        state = {f"model.{key}": value for key, value in weights().items()}
        path = saved(tmp_path, state | {"optim.state.0.exp_avg": torch.ones(2)}, flat=False)
        assert_same(read_dcp(path).states[""], state)

    def test_averages(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"model": weights(), "ema": weights(seed=1)}, parts=2)
        content = read_dcp(path)
        assert content.averaged == {"ema"}
        assert_same(content.states["ema"], weights(seed=1))

    def test_none(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"optim": OPTIMIZER})
        with pytest.raises(UnreadableError, match="no weights found; its entries are 'optim"):
            read_dcp(path)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"step": 7, "epoch": 2}, (7, "step", 2)),
        ({"global_step": torch.tensor(8)}, (8, "global_step", None)),
        ({"train_state": {"step": torch.tensor(9)}}, (9, "train_state.step", None)),
        (
            {"state": {"timestamp": {"Timestamp": {"batch": 3, "epoch": 1}}}},
            (3, "state.timestamp.Timestamp.batch", 1),
        ),
        ({"optim": {"step": 7}, "lr": {"step": 9}}, (None, "", None)),
        ({"step": "soon"}, (None, "", None)),
        ({"step": torch.arange(3)}, (None, "", None)),
    ],
)
def test_steps(tmp_path: Path, state: dict[str, Any], expected: Any) -> None:
    content = read_dcp(saved(tmp_path, {"model": weights(), **state}), header_only=True)
    assert (content.step, content.step_source, content.epoch) == expected


@pytest.mark.parametrize("header_only", [True, False])
class TestFiles:
    def test_a_missing_one(self, tmp_path: Path, header_only: bool) -> None:
        path = saved(tmp_path, {"model": BIG}, parts=2)
        (path.parent / "__0_1.distcp").unlink()
        with pytest.raises(UnreadableError, match=r"__0_1\.distcp: there is no such file"):
            read_dcp(path, header_only=header_only)

    def test_a_short_one(self, tmp_path: Path, header_only: bool) -> None:
        path = saved(tmp_path, {"model": BIG})
        file = path.parent / "__0_0.distcp"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(UnreadableError, match=r"__0_0\.distcp: has \d+ bytes, but .* up to"):
            read_dcp(path, header_only=header_only)

    def test_metadata_that_are_missing(self, tmp_path: Path, header_only: bool) -> None:
        with pytest.raises(UnreadableError, match=r"\.metadata: cannot be read"):
            read_dcp(tmp_path / ".metadata", header_only=header_only)


def test_pieces_of_another_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"w": torch.ones(3, 4)}})
    other = saved(tmp_path / "other", {"model": {"w": torch.ones(4, 3)}})
    (path.parent / "__0_0.distcp").write_bytes((other.parent / "__0_0.distcp").read_bytes())
    with pytest.raises(UnreadableError, match=r"model\.w at byte 0 is not the torch\.float32"):
        read_dcp(path)


def test_a_tensor_that_would_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = saved(tmp_path, {"model": weights(), "step": Evil(marker)})
    content = read_dcp(path)  # the step needs code to load, and so is ignored
    assert content.step is None
    assert not marker.exists()
    bomb = tmp_path / "bomb.pt"
    torch.save(Evil(marker), bomb)
    for file in path.parent.glob("*.distcp"):
        data = bomb.read_bytes()
        file.write_bytes(data + b"\0" * (file.stat().st_size - len(data)))
    with pytest.raises(UnreadableError, match="is not readable at byte"):
        read_dcp(path)
    assert not marker.exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("dcp"), {"model": BIG, "step": 5}, parts=2)


@given(at=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_metadata_end_in_an_error_or_are_read(
    sound: Path, at: int, byte: int, cut: bool
) -> None:
    whole = bytearray(sound.read_bytes())
    at %= len(whole)
    damaged = sound.with_name(".metadata.damaged")
    whole[at] = byte
    damaged.write_bytes(whole[:at] if cut else whole)
    message = ""
    try:
        read_dcp(damaged)
    except LocalrankError as error:
        message = str(error)
    assert not message or str(sound.parent) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2**20, 2**20), "has 1099511627776 values"),  # more than its files keep
        ((2**59, 2**59, 0), "a tensor has the shape"),  # none, and torch cannot hold the shape
    ],
)
def test_a_truncated_tensor_is_seen_in_the_header(
    tmp_path: Path, size: tuple[int, ...], message: str
) -> None:
    save_dcp(tmp_path / "step_7", weights())
    path = tmp_path / "step_7/.metadata"
    metadata = pickle.loads(path.read_bytes())
    tensor = metadata.state_dict_metadata["0.weight"]
    tensor.size = torch.Size(size)
    object.__setattr__(tensor.chunks[0], "sizes", torch.Size(size))
    object.__setattr__(tensor.chunks[0], "offsets", torch.Size([0] * len(size)))
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "0.weight")
    metadata.storage_data = {
        MetadataIndex("0.weight", tensor.chunks[0].offsets): info,
        **{index: one for index, one in metadata.storage_data.items() if one is not info},
    }
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UnreadableError, match=message):
        read_dcp(path, header_only=True)
