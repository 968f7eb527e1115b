"""Networks of several named inputs, from the command line, against Jacobians computed naively."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from localrank_cli import analyze
from tests.cli.program import invoke

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, tokens=None, mask=None, image=None, labels=None):
        x = self.embedding(tokens) if image is None else image
        if tokens is not None and image is not None:
            x = x + self.embedding(tokens)
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, :], float("-inf"))
        return self.head(torch.tanh(scores.softmax(-1) @ self.value(x)))
"""
# As a tokenizer's BatchEncoding is one, with lists unless tensors are asked for.
USER_DICT = """
from collections import UserDict
data = UserDict({key: value.tolist() for key, value in inputs.items()})
"""
# As a Dataset of the library datasets gives its columns.
DATA_SET = """
class Rows:
    column_names = ["tokens", "mask"]

    def __getitem__(self, rows):
        assert rows == slice(None)
        return inputs

data = Rows()
"""
N, T = 7, 5
space: dict[str, Any] = {}
exec(CODE, space)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "run").mkdir()
    torch.save(network().state_dict(), tmp_path / "run" / "step_3.pt")
    return tmp_path


def network() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = space["Net"]()
    for parameter in net.parameters():
        parameter.data.normal_(std=1.0)
    return net


def arrays() -> dict[str, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([5, 3, 1, 4, 5, 2, 3])
    return {
        "tokens": torch.randint(11, (N, T)),
        "mask": (torch.arange(T) < lengths[:, None]).long(),
        "image": torch.randn(N, T, 4, dtype=torch.float64),
    }


def as_tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def jacobian_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    compute: Any = torch.autograd.functional.jacobian
    return as_tensor(compute(function, at))


def norms(inputs: dict[str, Tensor], wrt: str) -> list[float]:
    """The mean norm of the head's Jacobian by an input or by the embedding's output."""
    net = network().double().eval()
    found = []
    for index in range(N):
        point = {key: value[index : index + 1] for key, value in inputs.items()}

        def output(varied: Tensor, point: dict[str, Tensor] = point) -> Tensor:
            if wrt in point:
                return as_tensor(net(**(point | {wrt: varied})))
            handle = net.get_submodule(wrt).register_forward_hook(lambda *_: varied)
            try:
                return as_tensor(net(**point))
            finally:
                handle.remove()

        start = point[wrt] if wrt in point else net.get_submodule(wrt)(point["tokens"]).detach()
        found.append(float(jacobian_of(output, start).norm()))
    return [sum(found) / N]


def table(run: Path, data: object, *options: str) -> Any:
    model = f"{run}/net.py:Net"
    return invoke(
        "analyze", str(run / "run"), "--model", model, "--data", str(data), "--layers", "head",
        "--device", "cpu", *options,
    )  # fmt: skip


def column(text: str, name: str = "jacobian_norm") -> list[float]:
    return [float(row[name]) for row in csv.DictReader(io.StringIO(text))]


def pick(*names: str) -> dict[str, Tensor]:
    return {name: arrays()[name] for name in names}


def save(path: Path, inputs: dict[str, Tensor]) -> Path:
    if path.suffix == ".npz":
        numbers: dict[str, Any] = {key: value.numpy() for key, value in inputs.items()}
        np.savez(path, **numbers)
    elif path.suffix == ".safetensors":
        save_file(inputs, path)
    else:
        torch.save(inputs, path)
    return path


NAMES = (
    (("tokens", "mask"), "embedding"),
    (("image", "mask"), ""),
    (("image", "tokens", "mask"), ""),
    (("image", "tokens", "mask"), "embedding"),
)
SUFFIXES = (".pt", ".npz", ".safetensors")


@pytest.mark.parametrize(
    ("suffix", "names", "wrt"),
    [
        # Each choice of inputs from one kind of file, and each kind of file; the rest at test-long.
        pytest.param(
            suffix, *choice, marks=() if number % len(SUFFIXES) == kind else pytest.mark.long
        )
        for number, choice in enumerate(NAMES)
        for kind, suffix in enumerate(SUFFIXES)
    ],
)
def test_numbers_are_those_of_jacobians_with_the_inputs_by_name(
    run: Path, suffix: str, names: tuple[str, ...], wrt: str
) -> None:
    data = save(run / f"data{suffix}", pick(*names) | {"labels": torch.zeros(N).long()})
    found = table(run, data, *(("--wrt", wrt) if wrt else ()))
    assert found.code == 0, found.stderr
    assert "left out: labels" in found.stderr
    # Rounding of some products of float64, and the 9 digits of the table.
    assert column(found.stdout) == pytest.approx(norms(pick(*names), wrt or "image"), rel=1e-8)
    assert column(found.stdout, "n_in") == [T * 4]


def test_the_mask_counts(run: Path) -> None:
    data = save(run / "data.pt", pick("tokens", "mask"))
    alone = table(run, data, "--wrt", "embedding", "--data-key", "tokens")
    assert column(alone.stdout) == pytest.approx(norms(pick("tokens"), "embedding"), rel=1e-8)
    masked = norms(pick("tokens", "mask"), "embedding")
    assert column(alone.stdout) != pytest.approx(masked, rel=0.01)  # far from rounding


def test_several_floating_inputs_need_a_name(run: Path) -> None:
    inputs = pick("image", "mask")
    inputs["mask"] = inputs["mask"].double()
    data = save(run / "data.pt", inputs)
    found = table(run, data)
    assert found.code == 1
    assert "several floating-point inputs: image, mask" in found.stderr
    assert "--data-key image,mask" in found.stderr
    found = table(run, data, "--data-key", "image,mask")
    assert column(found.stdout) == pytest.approx(norms(inputs, "image"), rel=1e-8)


def test_slices_and_the_metric_are_of_the_varied_input(run: Path) -> None:
    inputs = pick("image", "mask")
    inputs = {"mask": inputs["mask"], "image": inputs["image"]}
    data = save(run / "data.pt", inputs)
    found = table(run, data, "--input-slice", "1:3, 0", "--points", "1")
    net = network().double()
    index = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:1]
    point = {key: value[index] for key, value in inputs.items()}
    jacobian = jacobian_of(lambda x: net(image=x, mask=point["mask"]), point["image"])
    part = jacobian.reshape(T * 3, T, 4)[:, 1:3, 0]
    assert column(found.stdout) == pytest.approx([float(part.norm())], rel=1e-8)
    found = table(run, data, "--input-metric", "data", "--allow-small-cov", "--points", "1")
    rows = inputs["image"].flatten(1)
    factor = (rows - rows.mean(0)).T / (N - 1) ** 0.5
    weighed = jacobian.reshape(T * 3, T * 4) @ factor
    assert column(found.stdout) == pytest.approx([float(weighed.norm())], rel=1e-8)


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("def data(): return inputs", None),
        ("data = [{k: v[i] for k, v in inputs.items()} for i in range(len(inputs['mask']))]", None),
        (USER_DICT, None),
        (DATA_SET, None),
        ("", lambda: pick("tokens", "mask")),
    ],
)  # fmt: skip
def test_dicts_from_code(run: Path, code: str, make: Callable[[], Any] | None) -> None:
    expected = norms(pick("tokens", "mask"), "embedding")
    if make is not None:
        frame = analyze(
            run / "run", model=space["Net"], data=make(), wrt="embedding", layers="head"
        )
        assert list(frame["jacobian_norm"]) == pytest.approx(expected, rel=1e-8)
        return
    save(run / "data.pt", pick("tokens", "mask"))
    load = f"import torch\ninputs = torch.load({str(run / 'data.pt')!r})\n"
    (run / "data.py").write_text(load + code)
    found = table(run, f"{run}/data.py:data", "--wrt", "embedding")
    assert column(found.stdout) == pytest.approx(expected, rel=1e-8), found.stderr


def test_another_mask_is_another_analysis(run: Path) -> None:
    inputs, out = pick("tokens", "mask"), str(run / "ranks.csv")
    data = save(run / "data.pt", inputs)
    (run / "data.py").write_text(f"import torch\ndef data(): return torch.load({str(data)!r})")
    for source in (data, f"{run}/data.py:data"):
        save(data, inputs)
        assert table(run, source, "--wrt", "embedding", "-o", out, "--overwrite").code == 0
        save(data, inputs | {"mask": torch.ones(N, T).long()})
        refused = table(run, source, "--wrt", "embedding", "-o", out)
        assert refused.code == 1
        assert "was started with different settings" in refused.stderr


def test_failures_name_the_inputs(run: Path) -> None:
    inputs = pick("tokens", "mask")
    data = save(run / "data.pt", inputs | {"mask": inputs["mask"][:, :3].clone()})
    found = table(run, data, "--wrt", "embedding")
    assert found.code == 1
    assert "tokens (5,) int64" in found.stderr
    found = table(run, save(run / "data.pt", inputs))
    assert "--wrt embedding" in found.stderr


def test_loss_over_all_data_takes_the_mask(run: Path) -> None:
    pooled = CODE.replace("@ self.value(x)))", "@ self.value(x)).mean(1))")
    (run / "net.py").write_text(pooled)
    inputs, labels = pick("tokens", "mask"), torch.arange(N) % 3
    data = save(run / "data.pt", inputs | {"labels": labels})
    found = table(run, data, "--wrt", "embedding", "--labels-key", "labels")
    with torch.no_grad():
        net: Any = network().double()
        hidden: list[Tensor] = []
        handle = net.head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        net(**inputs)
        handle.remove()
        loss = nn.functional.cross_entropy(net.head(hidden[0].mean(1)), labels)
    assert column(found.stdout, "loss") == pytest.approx([float(loss)], rel=1e-8)


def test_a_single_layer_of_two_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Bilinear(3, 2, 4)
    (tmp_path / "run").mkdir()
    torch.save(layer.state_dict(), tmp_path / "run" / "step_0.pt")
    inputs = {"input1": torch.randn(6, 3), "input2": torch.randn(6, 2)}
    data = save(tmp_path / "data.pt", inputs)
    found = invoke(
        "analyze", str(tmp_path / "run"), "--model", "torch.nn:Bilinear", "--model-arg",
        "in1_features=3", "--model-arg", "in2_features=2", "--model-arg", "out_features=4",
        "--data", str(data), "--data-key", "input2,input1", "--device", "cpu",
    )  # fmt: skip
    # y_k = x1^T W_k x2 + b_k: the Jacobian by x2 has the rows x1^T W_k.
    weight = layer.weight.detach().double()
    rows = torch.einsum("ni,kij->nkj", inputs["input1"].double(), weight)
    assert column(found.stdout) == pytest.approx([float(rows.flatten(1).norm(dim=1).mean())])
    assert column(found.stdout, "n_in") == [2]


def test_a_network_that_calls_itself(run: Path) -> None:
    code = CODE.replace(
        "        x = self.embedding(tokens) if image is None else image\n",
        "        if labels is None:\n"
        "            return self(tokens, mask, labels=0)\n"
        "        x = self.embedding(tokens)\n",
    )
    (run / "net.py").write_text(code)
    data = save(run / "data.pt", pick("tokens", "mask"))
    found = table(run, data, "--wrt", "embedding")
    expected = norms(pick("tokens", "mask"), "embedding")
    assert column(found.stdout) == pytest.approx(expected, rel=1e-8), found.stderr


def test_a_bert_with_padding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "run" / "step_0")
    lengths = torch.tensor([6, 4, 3, 5])
    inputs = {
        "input_ids": torch.randint(1, 30, (4, 6)),
        "attention_mask": (torch.arange(6) < lengths[:, None]).long(),
        "token_type_ids": (torch.arange(6) > 2).long().repeat(4, 1),
    }
    torch.save(inputs | {"labels": torch.tensor([0, 1, 0, 1])}, tmp_path / "data.pt")
    net = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "run" / "step_0", attn_implementation="eager"
    )
    net = net.double().eval()
    layer, values = "bert.encoder.layer.1.output.dense", []
    for index in range(4):
        point = {key: value[index : index + 1] for key, value in inputs.items()}
        ids = {key: point[key] for key in ("input_ids", "token_type_ids")}

        def output(varied: Tensor, point: dict[str, Tensor] = point) -> Tensor:
            seen: list[Tensor] = []
            hooks = [
                net.bert.embeddings.register_forward_hook(lambda *_: varied),
                net.get_submodule(layer).register_forward_hook(lambda *a: seen.append(a[2])),
            ]
            net(**point)
            for hook in hooks:
                hook.remove()
            return seen[0]

        jacobian = jacobian_of(output, net.bert.embeddings(**ids).detach())
        values.append(torch.linalg.svdvals(jacobian.reshape(48, 48)))
    found = invoke(
        "analyze", str(tmp_path / "run"), "--model", "hf", "--data", str(tmp_path / "data.pt"),
        "--wrt", "bert.embeddings", "--layers", layer, "--atol", "0.5", "--device", "cpu",
    )  # fmt: skip
    assert found.code == 0, found.stderr
    # The library's masks and norms are cast to float32 here, and not by localrank: 1e-6 in all.
    norm = torch.stack(values).norm(dim=1).mean().item()
    assert column(found.stdout) == pytest.approx([norm], rel=1e-5)
    counts = (torch.stack(values) > 0.5).sum(dim=1).double().mean().item()
    assert column(found.stdout, "local_rank") == [counts]
