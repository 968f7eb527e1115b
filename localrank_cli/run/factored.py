"""Networks whose checkpoints hold layers as two factors of low rank."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from localrank_cli.errors import Note, listed
from localrank_cli.layers.factored import can_factor, factored_like, set_module
from localrank_cli.model.fill import Expected
from localrank_cli.model.twice import Network, Rebuild


def with_factors(network: Network, state: Mapping[str, Tensor] | None, note: Note) -> Network:
    """Return a network with two layers in the place of each one that a checkpoint holds as factors.

    These have `NAME.0.weight` and `NAME.1.weight` where the network has `NAME.weight`, as in what
    `localrank compress` writes. Tables name the two together NAME.
    """
    ranks = _ranks(network.model, state or {})
    if not ranks:
        return network
    _factor(network.model, ranks)
    shown = [f"{name} (rank {rank})" for name, rank in ranks.items()]
    note(f"the checkpoint holds layers as two factors of low rank: {listed(shown)}")

    def rebuild(other: bool) -> Rebuild:
        """Build the network anew, with the same layers as factors."""
        assert network.rebuild is not None
        found = network.rebuild(other)
        _factor(found.model, ranks)
        return found

    gone = {f"{name}.{kind}" for name in ranks for kind in ("weight", "bias")}
    return replace(
        network,
        drawn=network.drawn - gone,
        unstable=network.unstable - gone,
        rebuild=None if network.rebuild is None else rebuild,
        # Of transformers too: what compress writes has the names of the network itself.
        expected_of=Expected,
    )


def _ranks(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the ranks of the layers of which a checkpoint holds factors, by name."""
    return {
        name: state[f"{name}.0.weight"].shape[0]
        for name, module in model.named_modules()
        if can_factor(module)
        and f"{name}.weight" not in state
        and {f"{name}.0.weight", f"{name}.1.weight", f"{name}.1.bias"} <= set(state)
        and state[f"{name}.0.weight"].ndim > 1
    }


def _factor(model: nn.Module, ranks: Mapping[str, int]) -> None:
    for name, rank in ranks.items():
        set_module(model, name, factored_like(model.get_submodule(name), rank))
