"""Weights of transformers' networks, loaded by the library itself.

The tensors in the files have other names, and sometimes other shapes, than those of the network:
`from_pretrained` renames, fuses and splits them, adds or removes the base model's prefix, ties
parameters, and ignores masks and tables of old versions. The details depend on the version, so the
library itself loads the weights, and its report shows what fits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localrank_cli.errors import MismatchError, cause, listed
from localrank_cli.model.fill import Expected, Shapes, same_values
from localrank_cli.model.hf import HfModel


@dataclass(frozen=True)
class Report:
    """How stored tensors fit a network, by the library's report; names are the network's."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()  # with both shapes, for messages
    fault: str = ""  # what the library raised

    @property
    def n_left(self) -> int:
        """How many entries of both sides found no place."""
        return len(self.missing) + len(self.unexpected)


class HfExpected(Expected):
    """The weights that a network of transformers accepts: whatever the library can convert."""

    def __init__(self, model: nn.Module, source: HfModel) -> None:
        super().__init__(model)
        self._model, self.source = model, source

    def report(self, shapes: Shapes) -> Report:
        """Return how stored tensors of such names and shapes fit, without reading any."""
        # Without memory: only what is fused is copied. (On `meta` nothing could be materialized.)
        zero = torch.zeros((), dtype=torch.float32, device="cpu")
        try:
            model, found = self.source.load(
                {key: zero.expand(shape) for key, shape in shapes.items()}, torch.float32
            )
        except Exception as error:  # the library raises whatever a conversion raises
            return Report(fault=cause(error))
        del model
        return _report(found)

    def can_load(self, report: Report) -> bool:
        """Return whether nothing has another shape, and something is loaded at all."""
        return not (report.mismatched or report.fault or self.floats <= set(report.missing))

    def is_filled_by(self, shapes: Shapes) -> bool:
        """Return whether stored tensors fill the whole network and nothing of them is left."""
        if self.fits(shapes):
            return True
        report = self.report(shapes)
        return not (report.mismatched or report.fault or report.n_left)

    def filled_by(self, shapes: Shapes, keys: set[str]) -> tuple[str, ...]:
        """Return the floating-point entries of the network that some of the stored keys fill."""
        if not keys:
            return ()
        rest = {key: shape for key, shape in shapes.items() if key not in keys}
        without = set(self.report(rest).missing) - set(self.report(shapes).missing)
        return tuple(sorted(without & self.floats))

    def check_stored(
        self, odd: tuple[str, ...], dtypes: Mapping[str, torch.dtype], place: str
    ) -> None:
        """Refuse integers and complex numbers where the network has floating-point numbers.

        `odd` are such entries of the network, and `dtypes` those of the stored tensors.

        Raises:
            MismatchError: If there are any.
        """
        if not odd:
            return
        kinds = {
            str(one).removeprefix("torch.") for one in dtypes.values() if not one.is_floating_point
        }
        raise MismatchError(
            f"{place}: {listed(odd, 4)} would be filled from {', '.join(sorted(kinds))}, expected"
            " floating-point numbers.",
            "Quantized weights are not read: save them as floats.",
        )

    def translate(self, state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
        """Return stored tensors as `from_pretrained` would load them, by the network's names.

        Where a config ties parameters that differ in the file, the library does not tie them; the
        network is untied then.
        """
        has_float64 = any(tensor.dtype == torch.float64 for tensor in state.values())
        try:
            # Exact for all that is stored: bfloat16, float16 and float32 fit into float32.
            loaded, found = self.source.load(state, torch.float64 if has_float64 else torch.float32)
        except Exception as error:  # the library raises whatever a conversion raises
            raise MismatchError(
                f"{place}: transformers cannot load the weights ({cause(error)}).",
                "Check that config.json belongs to these weights.",
            ) from error
        report = _report(found)
        if report.mismatched or report.fault:
            raise mismatch_of(report, place)
        complete = {key: value.detach() for key, value in loaded.state_dict().items()}
        for keys in [keys for keys in self.tied if _differ(complete, keys)]:
            self._untie(keys)
        return complete

    def _untie(self, keys: list[str]) -> None:
        for key in keys[1:]:
            parent, _, name = key.rpartition(".")
            module = self._model.get_submodule(parent)
            value = getattr(module, name).detach().clone()
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        self.tied.remove(keys)


def mismatch_of(report: Report, place: str) -> MismatchError:
    """Return the error for weights that a network of transformers cannot hold."""
    parts = []
    if report.mismatched:
        parts.append(f"wrong shape: {listed(report.mismatched, 4)}")
    if report.missing:
        parts.append(f"missing: {listed(report.missing, 4)}")
    if report.unexpected:
        parts.append(f"unexpected: {listed(report.unexpected, 4)}")
    parts += [f"transformers says {report.fault}"] if report.fault else []
    return MismatchError(
        f"{place}: the weights do not fit the model of config.json; {'; '.join(parts)}.",
        "Check that config.json belongs to these weights (its 'architectures' and sizes), or leave"
        " the file out with --pattern.",
    )


def _report(found: Mapping[str, object]) -> Report:
    def names(key: str) -> tuple[str, ...]:
        """Return one of the sets of keys that transformers reports, in order."""
        value = found.get(key) or ()
        assert isinstance(value, (set, list, tuple, frozenset))
        return tuple(sorted(str(one) for one in value))

    mismatched = found.get("mismatched_keys") or ()
    errors = found.get("error_msgs") or ()
    assert isinstance(mismatched, (set, list, tuple))
    assert isinstance(errors, (list, tuple))
    return Report(
        names("missing_keys"),
        names("unexpected_keys"),
        tuple(
            sorted(
                f"{key} has shape {list(got)}, expected {list(due)}" for key, got, due in mismatched
            )
        ),
        "; ".join(str(error) for error in errors),
    )


def _differ(state: Mapping[str, Tensor], keys: list[str]) -> bool:
    first, *others = [state[key] for key in keys if key in state]
    return any(not same_values(first, other) for other in others)
