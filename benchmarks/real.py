"""Networks of real size, with random weights: `real.py CASE THREADS DTYPE ROWS` is the baseline.

localrank runs as a whole command on a saved checkpoint. The baseline is a script that takes the
same Jacobians by jacrev in chunks of rows. Where all rows would take hours, it takes some of each
Jacobian and multiplies: the table says so.
"""

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import timed
from methods import ATOL
from torch import Tensor, nn
from torch.func import jacrev

SEED = 0  # of localrank, which draws the positions of same:N
CHUNK = 16  # rows that are pulled back at once
SAMPLE = 16  # rows of each Jacobian that are measured in place of all


@dataclass(frozen=True)
class Real:
    """One line of the table."""

    name: str
    make: Callable[[bool], nn.Module]  # whether it is small -> a network of transformers
    points: Callable[[nn.Module], Tensor]  # that localrank reads too
    flags: tuple[str, ...]
    jacobians: Callable[[nn.Module, Tensor], "Iterator[Rows]"]
    target: float  # CPU seconds of the whole command, one thread
    data: str = "points.pt"  # --data
    command: str = "analyze"


@dataclass(frozen=True)
class Rows:
    """A function whose Jacobian is wanted, at its input."""

    label: str  # layer
    function: Callable[[Tensor], Tensor]  # varied tensor -> flat output
    varied: Tensor
    n_out: int


def _gpt2(small: bool) -> nn.Module:  # as of Real.make
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 11, "n_head": 2, "vocab_size": 64} if small else {}
    return GPT2LMHeadModel(
        GPT2Config(attn_implementation="eager", bos_token_id=0, eos_token_id=0, **sizes)
    )


def _pythia(small: bool) -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    width, depth, vocabulary = (24, 2, 64) if small else (512, 6, 50304)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=2 if small else 8,
        intermediate_size=4 * width,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPTNeoXForCausalLM(config)


def _resnet18(small: bool) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [8, 8, 16, 16] if small else [64, 128, 256, 512]
    config = ResNetConfig(
        embedding_size=sizes[0], hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic"
    )
    return ResNetForImageClassification(config)


def _tokens(count: int) -> Callable[[nn.Module], Tensor]:
    def make(model: nn.Module) -> Tensor:
        length = 64 if model.config.vocab_size > 64 else 8
        return torch.randint(0, model.config.vocab_size, (count, length))

    return make


def _image(model: nn.Module) -> Tensor:
    side = 224 if model.config.hidden_sizes[-1] > 16 else 32
    return torch.randn(1, 3, side, side)


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _last_to_last(model: nn.Module, points: Tensor) -> Iterator[Rows]:
    """Yield every block's last token with respect to the last token's embedding."""
    embedded: list[Tensor] = []
    drop = model.get_submodule("transformer.drop")
    handle = drop.register_forward_hook(lambda _m, _a, output: embedded.append(output))
    model(points[:1])
    handle.remove()
    blocks = model.get_submodule("transformer.h")
    for index in range(len(blocks)):

        def function(last: Tensor, index: int = index) -> Tensor:
            hidden = torch.cat([embedded[0][:, :-1], last[None, None]], dim=1)
            replace = drop.register_forward_hook(lambda _m, _a, _o: hidden)
            found: list[Tensor] = []
            block = blocks[index]
            read = block.register_forward_hook(lambda _m, _a, o: found.append(_tensor(o)[0, -1]))
            try:
                model(points[:1])
            finally:
                replace.remove()
                read.remove()
            return found[0]

        width = embedded[0].shape[2]
        yield Rows(f"transformer.h.{index}", function, embedded[0][0, -1], width)


def _block_to_block(
    blocks: str, positions: Callable[[int, int], Sequence[int]]
) -> Callable[[nn.Module, Tensor], Iterator[Rows]]:
    """Return the Jacobians of each block, called by itself, at some tokens of every point."""

    def jacobians(model: nn.Module, points: Tensor) -> Iterator[Rows]:
        calls: dict[str, tuple[Tensor, dict[str, Any]]] = {}
        modules = dict(model.get_submodule(blocks).named_children())
        for point in range(len(points)):
            handles = []
            for name, module in modules.items():

                def keep(_m: Any, args: Any, kwargs: Any, name: str = name) -> None:
                    calls[name] = (
                        args[0] if args else kwargs.pop("hidden_states"),
                        {
                            key: value
                            for key, value in kwargs.items()
                            if "past" not in key and "cache" not in key
                        },
                    )

                handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
            model(points[point : point + 1], use_cache=False)
            for handle in handles:
                handle.remove()
            for name, module in modules.items():
                hidden, kwargs = calls[name]
                for token in positions(point, hidden.shape[1]):

                    def function(
                        one: Tensor,
                        hidden: Tensor = hidden,
                        token: int = token,
                        module: nn.Module = module,
                        kwargs: dict[str, Any] = kwargs,
                    ) -> Tensor:
                        parts = [hidden[:, :token], one[None, None], hidden[:, token + 1 :]]
                        return _tensor(module(torch.cat(parts, dim=1), **kwargs))[0, token]

                    yield Rows(f"{blocks}.{name}", function, hidden[0, token], hidden.shape[2])

    return jacobians


def _convolutions(model: nn.Module, points: Tensor) -> Iterator[Rows]:
    """Yield one place of every convolution with respect to the image."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for name in names:
        module = model.get_submodule(name)

        def function(image: Tensor, module: nn.Module = module) -> Tensor:
            found: list[Tensor] = []

            def read(_m: nn.Module, _a: Any, output: Tensor) -> None:
                place = output.shape[2] // 2
                found.append(output[0, :, place, place])

            handle = module.register_forward_hook(read)
            try:
                model(image[None])
            finally:
                handle.remove()
            return found[0]

        assert isinstance(module, nn.Conv2d)
        yield Rows(name, function, points[0], module.out_channels)


def _none(model: nn.Module, points: Tensor) -> Iterator[Rows]:
    del model, points
    yield from ()


_GPT2_BLOCKS = ("--layers", "transformer.h.?,transformer.h.??", "--points", "1")
REAL: dict[str, Real] = {
    "gpt2_last": Real(
        "GPT-2 124M, 64 tokens, last to last token, 12 blocks, 1 point",
        _gpt2,
        _tokens(4),
        (*_GPT2_BLOCKS, "--wrt", "transformer.drop", "--positions", "last"),
        _last_to_last,
        30,
    ),
    "gpt2_blocks": Real(
        "the same, block to block",
        _gpt2,
        _tokens(4),
        (*_GPT2_BLOCKS, "--wrt", "previous", "--positions", "last"),
        _block_to_block("transformer.h", lambda _, length: [length - 1]),
        30,
    ),
    "pythia": Real(
        "Pythia-70m, 64 tokens, block to block, 4 tokens, 8 points",
        _pythia,
        _tokens(8),
        ("--layers", "gpt_neox.layers.?", "--points", "8", "--wrt", "previous",
         "--positions", "same:4"),
        # Other tokens than localrank draws cost the same, and are as good for its time.
        _block_to_block("gpt_neox.layers", lambda _, length: range(0, length, length // 4)),
        300,
    ),
    "resnet18": Real(
        "ResNet-18 at 224, one place of each convolution, 1 point",
        _resnet18,
        _image,
        ("--positions", "each:1", "--points", "1", "--layers", "*convolution*"),
        _convolutions,
        600,
    ),
    "inspect": Real(
        "inspect of GPT-2, 64 tokens",
        _gpt2,
        _tokens(4),
        ("--wrt", "transformer.drop"),
        _none,
        20,
        command="inspect",
    ),
}  # fmt: skip
# At these positions both sides take the same Jacobians, so that counts can be compared where the
# baseline takes all rows.
COMPARED = frozenset({"gpt2_last", "gpt2_blocks"})


def real_lines(keys: Sequence[str], *, quick: bool) -> list[dict[str, Any]]:
    """Time localrank's whole command, and the baseline at its best number of threads.

    Args:
        keys: Of REAL.
        quick: Whether the networks are tiny, and the baseline takes all rows, in float64 alone.

    Returns:
        A line of the table for each baseline.
    """
    lines = []
    for key in keys:
        case = REAL[key]
        with tempfile.TemporaryDirectory(prefix="localrank-bench-") as name:
            folder = Path(name)
            torch.manual_seed(0)
            model = case.make(quick)
            model.save_pretrained(folder / "run/checkpoint-0")
            torch.save(case.points(model), folder / "points.pt")
            words = [sys.executable, "-m", "localrank_cli", case.command, str(folder / "run")]
            words += ["--model", "hf", "--data", str(folder / "points.pt"), *case.flags]
            threads = (1,) if quick else (1, 2)
            ours = {
                count: timed(words, {"OMP_NUM_THREADS": str(count)}) | {"threads": count}
                for count in threads
            }
            line = {
                "case": case.name,
                "baseline": f"none; at most {case.target:g} CPU s on one thread",
                "localrank": ours[1],
            }
            dtypes = ("float64",) if quick else ("float32", "float64")
            for dtype in dtypes if case.jacobians is not _none else ():
                theirs = [
                    _baseline(folder, key, count, dtype, 0 if quick else SAMPLE)
                    for count in threads
                ]
                best = min(theirs, key=lambda one: float(one["seconds"]))
                kind = "all rows" if quick else f"{SAMPLE} rows of each Jacobian, extrapolated"
                line["baseline"] = f"jacrev in chunks, {dtype}, {kind}"
                line |= {"theirs": best}
                if quick and key in COMPARED:
                    line |= _compare(best["counts"], ours[1]["output"])
                lines.append({**line, "localrank": min(ours.values(), key=_seconds)})
            if case.jacobians is _none:
                lines.append(line)
    for line in lines:
        line["localrank"].pop("output", None)
    return lines


def _seconds(run: dict[str, Any]) -> float:
    return float(run["seconds"])


def _baseline(folder: Path, key: str, threads: int, dtype: str, rows: int) -> dict[str, Any]:
    words = [sys.executable, __file__, key, str(threads), dtype, str(rows), str(folder)]
    answer: dict[str, Any] = json.loads(timed(words, {})["output"])
    return answer | {"threads": threads}


def _compare(counts: Sequence[tuple[str, int]], output: str) -> dict[str, int]:
    rows = {row["layer"]: float(row["local_rank"]) for row in csv.DictReader(output.splitlines())}
    # The first block has no block before it: localrank takes its input, as this script does.
    assert {layer for layer, _ in counts} == set(rows)
    return {
        "differing": sum(rows[layer] != count for layer, count in counts),
        "matrices": len(counts),
    }


def main() -> None:
    """Print the seconds of the script, extrapolated where it takes some rows only, and counts."""
    key, threads, dtype, sample, place = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case, folder = REAL[key], Path(place)
    started, processor = time.perf_counter(), time.process_time()
    precision: torch.dtype = getattr(torch, dtype)
    model = _load(folder / "run/checkpoint-0", case).to(precision).eval().requires_grad_(False)
    points = torch.load(folder / "points.pt", weights_only=True)
    points = points.to(precision) if points.is_floating_point() else points
    if "--points" in case.flags:
        points = points[: int(case.flags[case.flags.index("--points") + 1])]
    seconds = [time.perf_counter() - started, time.process_time() - processor]
    counts: list[tuple[str, int]] = []
    seen: set[str] = set()
    jacobians = list(case.jacobians(model, points))
    for one in jacobians:
        rows = int(sample) or one.n_out
        if int(sample):  # one Jacobian of each layer stands for those at other points
            if one.label in seen:
                continue
            seen.add(one.label)
        alike = sum(other.label == one.label for other in jacobians) if int(sample) else 1
        before = time.perf_counter(), time.process_time()
        parts = [
            _rows(one, range(start, min(start + CHUNK, rows))) for start in range(0, rows, CHUNK)
        ]
        pulled = time.perf_counter(), time.process_time()
        jacobian = torch.cat(parts)
        missing = one.n_out - len(jacobian)  # so that the SVD is of the size that it has
        jacobian = torch.cat([jacobian, torch.randn(missing, jacobian.shape[1]).to(jacobian)])
        counts.append((one.label, int((torch.linalg.svdvals(jacobian) > ATOL).sum())))
        done = time.perf_counter(), time.process_time()
        for clock in range(2):
            seconds[clock] += alike * (pulled[clock] - before[clock]) * one.n_out / rows
            seconds[clock] += alike * (done[clock] - pulled[clock])
    print(json.dumps({"seconds": seconds[0], "processor": seconds[1], "counts": counts}))


def _rows(one: Rows, indices: range) -> Tensor:
    """Return some rows of a Jacobian, as jacrev computes a chunk of them."""
    some = slice(indices.start, indices.stop)
    jacobian = jacrev(lambda varied: one.function(varied).flatten()[some])(one.varied)
    return jacobian.reshape(len(indices), -1)


def _load(folder: Path, case: Real) -> nn.Module:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    small = sum(tensor.numel() for tensor in weights.values()) < 10**6
    model = case.make(small)
    model.load_state_dict(weights, strict=False)  # tied weights are saved once
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


if __name__ == "__main__":
    main()
