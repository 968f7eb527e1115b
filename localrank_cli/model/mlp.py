"""A plain multilayer perceptron, inferred from nothing but its weights and an activation."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from localrank_cli.errors import ModelError, listed

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "relu6": nn.ReLU6,
    "identity": nn.Identity,
}

Sizes = Mapping[str, tuple[int, int]]  # layer -> (n_out, n_in)

# A search that takes longer has so many orders to choose from that none is certain.
_MAX_TRIES = 10_000
USE_MODEL = "Give the network's code: --model path/to/file.py:name."


@dataclass(frozen=True)
class MlpLayout:
    """The Linear layers of an MLP in order of execution."""

    names: tuple[str, ...]  # module names, such as "0", "2", "4" or "fc1", "fc2"
    widths: tuple[int, ...]  # input, hidden ..., output
    biases: tuple[bool, ...]

    @property
    def description(self) -> str:
        """For notes: 784-100-10."""
        return "-".join(map(str, self.widths))


class InferredMlp(nn.Module):
    """Linear layers with an activation between them, under the names of the weights."""

    def __init__(self, layout: MlpLayout, activation: str) -> None:
        super().__init__()
        self._order = layout.names
        self._n_in = layout.widths[0]
        # In a tuple, so that it is not a submodule: it has no state and is not one of the layers.
        self._act = (ACTIVATIONS[activation](),)
        sizes = zip(layout.widths[:-1], layout.widths[1:], layout.biases, strict=True)
        for name, (n_in, n_out, bias) in zip(layout.names, sizes, strict=True):
            *parents, last = name.split(".")
            place: nn.Module = self
            try:
                for parent in parents:
                    if parent not in dict(place.named_children()):
                        place.add_module(parent, nn.Module())
                    place = place.get_submodule(parent)
                place.add_module(last, nn.Linear(n_in, n_out, bias=bias))
            except (KeyError, AttributeError) as error:  # empty, or taken by nn.Module itself
                raise ModelError(f"no module can be named {name!r}.", USE_MODEL) from error

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output, shape (points, n_out); a point of any shape is flattened first.

        Raises:
            ModelError: If a point does not have as many entries as the first layer takes.
        """
        hidden = inputs.reshape(inputs.shape[0], -1)
        if hidden.shape[1] != self._n_in:
            raise ModelError(
                f"the data's points have shape {tuple(inputs.shape[1:])},"
                f" {hidden.shape[1]} values each; the first layer"
                f" {self._order[0]!r} takes {self._n_in}.",
                "Is this the data the network was trained on? Check --data and --data-key.",
            )
        for index, name in enumerate(self._order):
            hidden = self.get_submodule(name)(self._act[0](hidden) if index else hidden)
        return hidden


def infer_mlp(shapes: Mapping[str, tuple[int, ...]], in_order: bool) -> MlpLayout:
    """Return the layers of a plain MLP, from the shapes of its weights.

    The order is certain in three ways only: the shapes fit in one order alone; or several fit and
    the names differ in their numbers (`0`, `2`, `10`; `fc1`, `fc2`); or the file keeps the order in
    which the layers were defined (`in_order`).

    Raises:
        ModelError: If the weights are not those of a plain MLP, or the order is ambiguous.
    """
    weights, biases = _linear_layers(shapes)
    orders, complete = two_orders(weights)
    defined = tuple(weights)
    if len(orders) == 1 and complete:
        names = orders[0]
    elif orders or not complete:
        if not (in_order and _fits(defined, weights)):
            fitting = " and as ".join(" -> ".join(order[:12]) for order in orders)
            raise ModelError(
                "the order of the layers is not certain: the weights fit"
                f" {f'as {fitting}' if fitting else 'in many orders'}.",
                USE_MODEL,
            )
        names = defined
    else:
        sizes = [f"{name}: {n_in} -> {n_out}" for name, (n_out, n_in) in weights.items()]
        raise ModelError(
            f"the Linear weights do not form one chain ({listed(sizes, 4)}).", USE_MODEL
        )
    widths = (weights[names[0]][1], *(weights[name][0] for name in names))
    return MlpLayout(names, widths, tuple(name in biases for name in names))


def layer_groups(names: Sequence[str]) -> list[str]:
    """Return the parts of a network that hold several layers each, if there are several such parts.

    `encoder.0`, `encoder.2`, `decoder.0` and `decoder.2` are in two. What is between the parts is
    not in the weights: often no activation (an autoencoder's code), and they may be two networks.
    """
    counts = Counter(name.rpartition(".")[0] for name in names)
    groups = [group for group, count in counts.items() if count > 1]
    return groups if len(groups) > 1 else []


def like_factors(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the layers that weights may hold as two factors of low rank, without an activation.

    `NAME.0` has no bias, `NAME.1` has one, and between them are fewer values than on either side.
    """
    found = []
    for key, shape in shapes.items():
        name = key.removesuffix(".0.weight")
        other = shapes.get(f"{name}.1.weight", ())
        is_pair = name != key and len(shape) == len(other) == 2 and other[1] == shape[0]
        biases = (f"{name}.0.bias" in shapes, f"{name}.1.bias" in shapes)
        if is_pair and biases == (False, True) and shape[0] < min(shape[1], other[0]):
            found.append(name)
    return found


def _linear_layers(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, int]], set[str]]:
    weights: dict[str, tuple[int, int]] = {}
    biases: dict[str, tuple[int, ...]] = {}
    odd: list[str] = []
    for key, shape in shapes.items():
        name, _, kind = key.rpartition(".")
        if name and kind == "weight" and len(shape) == 2:
            weights[name] = (shape[0], shape[1])
        elif name and kind == "bias" and len(shape) == 1:
            biases[name] = shape
        else:
            odd.append(f"{key} {list(shape)}")
    odd += [
        f"{name}.bias {list(shape)}"
        for name, shape in biases.items()
        if name not in weights or shape[0] != weights[name][0]
    ]
    odd += [f"{name}.weight inside another layer" for name in weights if _is_inside(name, weights)]
    if odd or not weights:
        raise ModelError(
            "without --model the weights must be those of a plain MLP"
            f" (0.weight, 0.bias, 2.weight, ...), but there is {listed(odd, 4)}."
            if odd
            else "without --model the weights must be those of a plain MLP, but there are none.",
            USE_MODEL,
        )
    return weights, set(biases)


def _is_inside(name: str, others: Mapping[str, object]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in others for length in range(1, len(parts)))


def _fits(names: Sequence[str], weights: Sizes) -> bool:
    return all(weights[before][0] == weights[after][1] for before, after in pairwise(names))


def two_orders(weights: Sizes) -> tuple[list[tuple[str, ...]], bool]:
    """Return two orders in which the shapes fit, or all where there are fewer.

    Names of one pattern stay in the order of their numbers. The second value is whether it is
    certain that there are no more orders.
    """
    found: list[tuple[str, ...]] = []
    if not _may_form_chain(weights):
        return found, True
    for order in _orders(weights):
        if order is None:
            return found, False
        found.append(order)
        if len(found) == 2:
            return found, False
    return found, True


def _may_form_chain(weights: Sizes) -> bool:
    # A chain uses each layer once, as an edge from n_in to n_out: an Euler path over the widths.
    # Checked first, because the search would try every order of layers that form no chain.
    surplus: Counter[int] = Counter()
    for n_out, n_in in weights.values():
        surplus[n_in] += 1
        surplus[n_out] -= 1
    unequal = sorted(value for value in surplus.values() if value)
    return unequal in ([], [-1, 1])


def _orders(weights: Sizes) -> Iterator[tuple[str, ...] | None]:
    # Depth-first, without recursion: a network may have more layers than Python has frames.
    # Yields None where it stops before it has tried every order.
    earlier = _earlier(weights)
    chain: list[str] = []
    used: set[str] = set()
    width: list[int | None] = [None]
    choices = [iter(weights)]
    tries = 0
    while choices:
        name = next(choices[-1], None)
        if name is None:
            choices.pop()
            width.pop()
            if chain:
                used.discard(chain.pop())
            continue
        n_out, n_in = weights[name]
        if name in used or width[-1] not in (None, n_in) or not earlier[name] <= used:
            continue
        tries += 1
        if tries > _MAX_TRIES:
            yield None
            return
        if len(chain) + 1 == len(weights):
            yield (*chain, name)
            continue
        chain.append(name)
        used.add(name)
        width.append(n_out)
        choices.append(iter(weights))


def _earlier(weights: Sizes) -> dict[str, set[str]]:
    """Return for each name the one of the same pattern with the next lower numbers."""
    groups: dict[str, list[tuple[list[int], str]]] = {}
    for name in weights:
        numbers = [int(digits) for digits in re.findall(r"\d+", name)]
        groups.setdefault(re.sub(r"\d+", "#", name), []).append((numbers, name))
    before: dict[str, set[str]] = {name: set() for name in weights}
    for group in groups.values():
        ordered = sorted(group)
        for (lower, first), (higher, second) in pairwise(ordered):
            # Numbers that differ only in leading zeros (1 and 01) say nothing about the order.
            before[second] = {first} if lower < higher else before[first]
    return before
