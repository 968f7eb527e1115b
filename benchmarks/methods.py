"""Local rank by localrank, and as a user would write it today."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

ATOL = 0.01
Method = Callable[[nn.Module, Tensor, tuple[str, ...]], list[float]]


class _Found(Exception):  # noqa: N818  # not an error: stops the forward pass early
    pass


def _up_to(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    """Return the layer's output as a function of one point."""
    module = model.get_submodule(layer)

    def function(point: Tensor) -> Tensor:
        found: list[Tensor] = []

        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            found.append(output)
            raise _Found

        handle = module.register_forward_hook(hook)
        try:
            model(point.unsqueeze(0))
        except _Found:
            pass
        finally:
            handle.remove()
        return found[0].flatten()

    return function


def loop(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> list[float]:
    """(a) A loop of torch.autograd.functional.jacobian and matrix_rank."""
    means = []
    for layer in layers:
        function = _up_to(model, layer)
        ranks = []
        for point in points:
            jacobian = torch.autograd.functional.jacobian(function, point)
            ranks.append(float(torch.linalg.matrix_rank(jacobian.flatten(1), atol=ATOL)))
        means.append(sum(ranks) / len(ranks))
    return means


def jacrev_svd(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> list[float]:
    """(b) vmap(jacrev) for each layer and svdvals."""
    means = []
    for layer in layers:
        jacobians = vmap(jacrev(_up_to(model, layer)))(points)
        values = torch.linalg.svdvals(jacobians.flatten(2))
        means.append(float((values > ATOL).sum(dim=1).double().mean()))
    return means


def jacrev_chunks(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> list[float]:
    """(b) where it does not fit: jacrev for each layer and point in chunks of rows."""
    means = []
    for layer in layers:
        ranks = []
        for point in points:
            jacobian = jacrev(_up_to(model, layer), chunk_size=256)(point)
            values = torch.linalg.svdvals(jacobian.flatten(1))
            ranks.append(float((values > ATOL).sum()))
        means.append(sum(ranks) / len(ranks))
    return means


def jacfwd_rank(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> list[float]:
    """(c) vmap(jacfwd) and matrix_rank, as the paper's first author does."""
    means = []
    for layer in layers:
        with sdpa_kernel(SDPBackend.MATH):  # forward mode knows no other kernel
            jacobians = vmap(jacfwd(_up_to(model, layer)))(points)
        ranks = torch.linalg.matrix_rank(jacobians.flatten(2), atol=ATOL)
        means.append(float(ranks.double().mean()))
    return means


def localrank(model: nn.Module, points: Tensor, layers: tuple[str, ...]) -> list[float]:
    """Compute all measures in float64, with the certificate and near_tol."""
    from localrank_cli.layers.select import Selection
    from localrank_cli.measures.layer import measure
    from localrank_cli.measures.table import demand_of
    from localrank_cli.spectrum.layer import Request, layer_spectra
    from localrank_cli.spectrum.tolerance import Tolerance

    tolerances = (Tolerance(atol=ATOL),)
    request = Request(Selection(layers), demand=demand_of(tolerances))
    spectra = layer_spectra(model.double(), points.double(), request)
    summaries = [measure(spectrum, tolerances, 1.0) for spectrum in spectra]
    return [summary.ranks[0].local_rank.mean or 0.0 for summary in summaries]


METHODS: dict[str, Method] = {
    "localrank": localrank,
    "loop": loop,
    "jacrev": jacrev_svd,
    "jacrev_chunks": jacrev_chunks,
    "jacfwd": jacfwd_rank,
}
