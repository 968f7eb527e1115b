import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from localrank_cli.checkpoints.reading import files_of, read_checkpoint
from localrank_cli.checkpoints.sharded import check_inside, is_index, is_shard
from localrank_cli.errors import LocalrankError, UnreadableError
from tests.checkpoints.layouts import save_shards
from tests.helpers import Evil, weights

SUFFIXES = (".safetensors", ".bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_come_in_the_order_of_the_index(tmp_path: Path, suffix: str) -> None:
    index = save_shards(tmp_path, "model", weights(), suffix)
    state = read_checkpoint(index).states[""]
    assert list(state) == list(weights())
    assert all(torch.equal(state[key], value) for key, value in weights().items())
    assert [path.name for path in files_of(index)] == [
        f"model{suffix}.index.json",
        f"model-00001-of-00002{suffix}",
        f"model-00002-of-00002{suffix}",
    ]


def test_a_header_needs_no_tensor(tmp_path: Path) -> None:
    index = save_shards(tmp_path, "model", weights())
    shard = tmp_path / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    shard.write_bytes(data[:header] + b"\xff" * (len(data) - header))  # every tensor is NaN
    state = read_checkpoint(index, header_only=True).states[""]
    assert all(tensor.is_meta for tensor in state.values())
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in weights().items()}


def test_the_step_in_an_index(tmp_path: Path) -> None:
    index = save_shards(tmp_path, "model", weights())
    loaded = json.loads(index.read_text())
    loaded["metadata"] = {"global_step": 7, "epoch": 2}
    index.write_text(json.dumps(loaded))
    content = read_checkpoint(index)
    assert (content.step, content.step_source, content.epoch) == (7, "global_step", 2)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("header_only", [True, False])
def test_a_missing_shard(tmp_path: Path, suffix: str, header_only: bool) -> None:
    index = save_shards(tmp_path, "model", weights(), suffix)
    (tmp_path / f"model-00002-of-00002{suffix}").unlink()
    with pytest.raises(UnreadableError, match=rf"00002{suffix}: there is no such file") as caught:
        read_checkpoint(index, header_only=header_only)
    assert "0.bias and 2 more" in caught.value.what


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("header_only", [True, False])
def test_a_tensor_missing_from_its_shard(tmp_path: Path, suffix: str, header_only: bool) -> None:
    index = save_shards(tmp_path, "model", weights(), suffix)
    path = tmp_path / f"model-00001-of-00002{suffix}"
    other = {"other": torch.ones(1)}
    if suffix == ".bin":
        torch.save(other, path)
    else:
        save_file(other, path)
    with pytest.raises(UnreadableError, match=r"does not hold 0\.weight, which model") as caught:
        read_checkpoint(index, header_only=header_only)
    assert "00001-of-00002" in caught.value.what


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_shard_is_named(tmp_path: Path, suffix: str) -> None:
    index = save_shards(tmp_path, "model", weights(), suffix)
    path = tmp_path / f"model-00002-of-00002{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableError, match="model-00002-of-00002"):
        read_checkpoint(index, header_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../b.bin",
        "..\\b.bin",
        "C:\\b.bin",
        "\\\\host\\b.bin",
        "..",
        "",
        "a\0b.bin",
        "a\nb.bin",
    ],
)
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    index = save_shards(folder, "model", weights())
    save_file(weights(), tmp_path / "secret.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights(), name)}))
    for header_only in (True, False):
        with pytest.raises(UnreadableError, match="which is not in its folder"):
            read_checkpoint(index, header_only=header_only)


@pytest.mark.parametrize("name", ["a.bin", "part/a.bin", "..a.bin", "a..bin", "[1] ä.bin"])
def test_names_inside_the_folder(name: str) -> None:
    check_inside(Path("x.index.json"), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "7",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        "\xff",
    ],
)
def test_a_malformed_index(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text, encoding="latin-1")
    with pytest.raises(UnreadableError, match=r"model\.safetensors\.index\.json: "):
        read_checkpoint(index)


def test_a_shard_that_would_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    index = save_shards(tmp_path, "model", weights(), ".bin")
    evil: dict[str, Any] = {**weights(), "evil": Evil(marker)}
    torch.save(evil, tmp_path / "model-00001-of-00002.bin")
    for header_only in (True, False):
        with pytest.raises(UnreadableError, match=r"needs code to load: posix\.system"):
            read_checkpoint(index, header_only=header_only)
    assert not marker.exists()


def test_names() -> None:
    assert is_index(Path("a/model.SafeTensors.index.json"))
    assert not is_index(Path("index.json"))
    assert is_shard("model-00001-of-00003")
    assert not is_shard("model-of-3")


def test_names_in_messages_move_no_cursor(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a\n\x1b[2Jb": "model-1.safetensors"}}))
    with pytest.raises(UnreadableError, match=r"a\?\?\[2Jb") as caught:
        read_checkpoint(index)
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FILES = st.sampled_from(["model-00001-of-00002.safetensors", "..", ".", "a/b", "", "\0", "x.bin"])


@given(
    loaded=JSON
    | st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.text(max_size=8) | st.just("0.weight"), FILES | JSON)},
        optional={"metadata": JSON},
    )
)
def test_any_json_ends_in_one_line_or_is_read(sound: Path, loaded: object) -> None:
    index = sound.with_name("other.safetensors.index.json")
    index.write_text(json.dumps(loaded), encoding="utf-8", errors="surrogatepass")
    message = ""
    try:
        read_checkpoint(index, header_only=True)
    except LocalrankError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or str(sound.parent) in message


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shards(tmp_path_factory.mktemp("sharded"), "model", weights())
