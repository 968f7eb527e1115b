"""Several named inputs: which arrays are taken, and how they are one tensor and several again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from localrank_cli.errors import DataError, LocalrankError, SettingsError
from localrank_cli.points import containers, files, rows
from localrank_cli.points.files import load_array, named_arrays
from localrank_cli.points.inputs import Forward, choose_keys, pack
from localrank_cli.points.rows import Rows
from localrank_cli.points.source import DataSource, load_points


def of_bert(
    input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **more: Any
) -> None:
    pass


def of_masked(x: Any, mask: Any = None) -> None:
    pass


def of_pair(left: Any, right: Any) -> None:
    pass


def of_one(x: Any) -> None:
    pass


def of_batch(**batch: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("forward", "keys", "key", "expected"),
    [
        (of_bert, "attention_mask input_ids", "", "attention_mask input_ids"),
        (of_bert, "attention_mask input_ids labels", "", "attention_mask input_ids"),
        (of_bert, "attention_mask input_ids z", "input_ids,attention_mask",
         "input_ids attention_mask"),
        (of_bert, "attention_mask input_ids", "input_ids", "input_ids"),
        (of_bert, "input_ids labels", "", "input_ids"),
        (of_bert, "attention_mask ids input_ids", "input_ids,ids", "input_ids ids"),
        (of_masked, "mask x y", "", "mask x"),
        (of_masked, "x y z", "", "x"),
        (of_masked, "images mask", "", "images"),
        (of_pair, "left right", "", "left right"),
        (of_batch, "a b", "", "a b"),
        (of_batch, "a x", "", "x"),
        (of_one, "a,b x", "a,b", "a,b"),
    ],
)  # fmt: skip
def test_arrays_that_are_taken(
    forward: Callable[..., None], keys: str, key: str, expected: str
) -> None:
    found = choose_keys(keys.split(), key, Forward.of(forward), "", "d.pt")
    assert found == expected.split()


def test_labels_are_no_input_even_where_the_network_takes_them() -> None:
    keys = ["attention_mask", "input_ids", "kind"]
    with pytest.raises(SettingsError, match="holds kind"):
        choose_keys(keys, "", Forward.of(of_bert), "", "d.pt")
    assert choose_keys(keys, "", Forward.of(of_bert), "kind", "d.pt") == keys[:2]


@pytest.mark.parametrize(
    ("forward", "keys", "key", "message"),
    [
        (of_bert, "attention_mask input_ids offsets", "",
         "d.pt: holds offsets, which the network's forward pass does not take; it takes input_ids,"
         " attention_mask, labels. Name the arrays to pass: --data-key attention_mask,input_ids."),
        (of_masked, "mask x y", "x,y", "does not take"),
        (of_pair, "left right", "left,nope", "has no array 'nope'"),
        (of_bert, "a b", "", "holds several arrays: a, b"),
        (of_pair, "left other right", "left,right,other", "holds other"),
    ],
)  # fmt: skip
def test_arrays_that_the_network_does_not_take(
    forward: Callable[..., None], keys: str, key: str, message: str
) -> None:
    with pytest.raises(LocalrankError) as caught:
        choose_keys(keys.split(), key, Forward.of(forward), "", "d.pt")
    assert message in str(caught.value)


def test_an_input_that_is_missing_is_named() -> None:
    def forward(a: Any, b: Any, c: Any) -> None:
        pass

    with pytest.raises(SettingsError, match="also needs c, which the data do not hold"):
        choose_keys(["a", "b"], "", Forward.of(forward), "", "d.pt")
    with pytest.raises(SettingsError, match="--data-key a,b,c"):
        choose_keys(["a", "b", "c"], "a,b", Forward.of(forward), "", "d.pt")


def test_rows_give_the_inputs_back() -> None:
    torch.manual_seed(0)
    arrays = {
        "image": torch.randn(4, 2, 3, dtype=torch.float64),
        "mask": torch.rand(4, 5) > 0.5,
        "ids": torch.randint(-9, 2**20, (4,)),
    }
    packed, inputs = pack(arrays, "d.pt", is_ordered=False)
    assert packed.shape == (4, 12)
    found = inputs.unpack(packed[1:3])
    assert {key: value.dtype for key, value in found.items()} == {
        "image": torch.float64, "mask": torch.bool, "ids": torch.int64,
    }  # fmt: skip
    assert all(torch.equal(found[key], arrays[key][1:3]) for key in arrays)
    integers = {"a": torch.ones(2, 1).long(), "b": torch.ones(2, 3) > 0}
    assert pack(integers, "", is_ordered=False)[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": torch.ones(3), "b": torch.ones(4)}, "different numbers of points: 3 in a, 4 in b"),
        ({"a": torch.ones(3), "b": torch.tensor(4)}, r"d.pt\[b\]: holds one number"),
        ({"a": torch.ones(3), "b": torch.full((3,), 2**30)}, "above 2\\^24"),
        ({"a": torch.ones(3), "b": torch.ones(3) * 1j}, "complex"),
    ],
)
def test_arrays_that_are_no_inputs_of_points(arrays: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(arrays, "d.pt", is_ordered=False)


def test_lists_of_dicts_and_lists_of_numbers(tmp_path: Path) -> None:
    points = [{"a": torch.ones(2) * i, "b": i} for i in range(3)]
    found = named_arrays(points, "p")
    assert found is not None
    assert found["a"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert found["b"].tolist() == [0, 1, 2]
    torch.save(points, tmp_path / "p.pt")
    assert load_array(tmp_path / "p.pt", "a")[0].shape == (3, 2)
    with pytest.raises(DataError, match="Pad the points to one length"):
        named_arrays({"a": [[1, 2], [1]]}, "p")
    with pytest.raises(DataError, match="different keys"):
        named_arrays([{"a": 1}, {"b": 1}], "p")


def test_the_hash_covers_every_input() -> None:
    hashes = set()
    for mask in (torch.ones(3, 2), torch.zeros(3, 2), torch.ones(3, 2) > 0):
        array = {"x": torch.ones(3, 2), "mask": mask}
        source = DataSource("", array=array, forward=Forward.of(of_masked))
        points, facts = load_points(source)
        hashes.add(facts["data_values_sha256"])
        assert facts["data_key"] == "x,mask"
        assert points.tensor.shape == (3, 4)
    assert len(hashes) == 3


def test_options_of_a_single_array_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2)), mask=np.ones((3, 2)))
    source = DataSource(str(tmp_path / "d.npz"), scale=2.0, forward=Forward.of(of_masked))
    with pytest.raises(SettingsError, match="--data-scale: the data are several inputs, mask, x"):
        load_points(source)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_inputs_of_a_large_file_are_read_by_rows(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, mask = torch.randn(9, 2, 3), torch.rand(9, 4) > 0.5
    path = tmp_path / f"d{suffix}"
    if suffix == ".npz":
        np.savez(path, x=x.numpy(), mask=mask.numpy())
    elif suffix == ".pt":
        torch.save({"x": x, "mask": mask}, path)
    else:
        save_file({"x": x, "mask": mask}, path)
    source = DataSource(str(path), count=5, keep=True, forward=Forward.of(of_masked))
    points, facts = load_points(source)
    for module in (containers, files, rows):
        monkeypatch.setattr(module, "AT_ONCE", 0)
    again, same = load_points(source)
    assert isinstance(again.everything, Rows)
    assert (same, again.indices, again.inputs) == (facts, points.indices, points.inputs)
    assert torch.equal(again.tensor, points.tensor)
    assert again.inputs is not None
    found = again.inputs.unpack(again.everything[:])
    assert torch.equal(found["x"], x.double())
    assert torch.equal(found["mask"], mask)
    chosen = again.inputs.unpack(again.tensor)
    assert torch.equal(chosen["x"], x.double()[list(again.indices)])
    assert torch.equal(chosen["mask"], mask[list(again.indices)])


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_unsigned_integers_do_not_become_negative(number: int) -> None:
    ids = torch.tensor([[1], [number]], dtype=torch.uint64)
    with pytest.raises(DataError, match=r"d.pt\[ids\] has integers above 2\^63 - 1"):
        pack({"ids": ids, "mask": torch.ones(2, 1) > 0}, "d.pt", is_ordered=False)


def test_the_lowest_integer_beside_floats_is_refused() -> None:
    arrays = {"a": torch.ones(1), "b": torch.tensor([-(2**63)])}
    with pytest.raises(DataError, match=r"above 2\^24"):
        pack(arrays, "d.pt", is_ordered=False)
