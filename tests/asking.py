"""The interface that the tests of numbers go through."""

import torch
from torch import Tensor, nn

from localrank_cli.jacobian.engine import Modes
from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from localrank_cli.spectrum.solve import Demand
from tests.cases import Case
from tests.naive import Array

PLENTY = 2**31  # bytes


def spectra_of(
    model: nn.Module,
    points: Tensor,
    layers: tuple[str, ...] = (),
    wrt: str = "",
    *,
    exclude: tuple[str, ...] = (),
    memory: int = PLENTY,
    dtype: torch.dtype = torch.float64,
    modes: Modes | None = None,
    demand: Demand = demand_of(None),
) -> dict[str, LayerSpectrum]:
    """Asks for spectra.

    Args:
        model: The network.
        points: Shape (points, ...).
        layers: Globs; none: the default.
        wrt: Module whose output is varied.
        exclude: Globs.
        memory: Bytes.
        dtype: Of the Jacobian.
        modes: Updated.
        demand: What the singular values are for; the default takes the SVD of every matrix.

    Returns:
        Label -> spectrum, in order of execution.
    """
    request = Request(Selection(layers, exclude, wrt), dtype, memory, demand)
    return {found.layer: found for found in layer_spectra(model, points, request, modes)}


def spectra_of_case(case: Case, modes: Modes | None = None) -> dict[str, LayerSpectrum]:
    """Asks for the spectra of a case.

    Args:
        case: The case.
        modes: Updated.

    Returns:
        Label -> spectrum.
    """
    model, points = case.build()
    return spectra_of(model, points, case.layers, case.wrt, modes=modes)


def values_of(model: nn.Module, points: Tensor, layer: str = "") -> Array:
    """Singular values of one layer, or of the last one.

    Args:
        model: The network.
        points: Shape (points, ...).
        layer: Its label.

    Returns:
        Shape (points, r).
    """
    found = spectra_of(model, points)
    spectrum = found[layer] if layer else list(found.values())[-1]
    return numbers(spectrum)


def numbers(spectrum: LayerSpectrum) -> Array:
    """The singular values as numpy has them.

    Args:
        spectrum: Of one layer.

    Returns:
        Shape (points, r).
    """
    values: Array = spectrum.values.numpy()
    return values
