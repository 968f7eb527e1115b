"""Fill a network with a checkpoint's weights, strictly."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from localrank_cli.errors import MismatchError, listed, one_line
from localrank_cli.model.other_names import OtherNames

Shapes = Mapping[str, tuple[int, ...]]


class Expected:
    """The keys, shapes and types that the state dict of a network must have.

    The network is freshly built: filling breaks the identity of tied parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        state = {
            key: value
            for key, value in model.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }
        self.shapes: dict[str, tuple[int, ...]] = {
            key: tuple(value.shape) for key, value in state.items()
        }
        self.floats = {key for key, value in state.items() if value.is_floating_point()}
        self._complex = {key for key, value in state.items() if value.is_complex()}
        self._names = OtherNames(model, state)
        owners: dict[int, list[str]] = {}
        for key, value in state.items():
            owners.setdefault(id(value), []).append(key)
        self.tied = [keys for keys in owners.values() if len(keys) > 1]

    @property
    def has_complex(self) -> bool:
        """Whether some entries are complex."""
        return bool(self._complex)

    def fits(self, shapes: Shapes) -> bool:
        """Return whether keys and shapes match, so that loading will be exact.

        Of tied parameters one name suffices, and BatchNorm's counter of batches may be missing
        (files older than torch 0.4.1 have none).
        """
        return not any(self.differences(shapes))

    def renamed(self, shapes: Shapes) -> Shapes:
        """Return a checkpoint's shapes under the network's names; see `OtherNames`."""
        return self._names.rename(shapes)

    def differences(self, shapes: Shapes) -> tuple[list[str], list[str], list[str]]:
        """Return a checkpoint's missing keys, unexpected keys, and keys of another shape."""
        shapes = self._names.rename(shapes)
        present = set(shapes)
        for keys in self.tied:
            if present & set(keys):
                present |= set(keys)
        missing = [
            key
            for key in self.shapes
            if key not in present and not key.endswith("num_batches_tracked")
        ]
        unexpected = [key for key in shapes if key not in self.shapes]
        wrong = [
            key for key in shapes if key in self.shapes and tuple(shapes[key]) != self.shapes[key]
        ]
        return missing, unexpected, wrong

    def translate(self, state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under the network's names; `place` is for messages."""
        del place
        return self._names.rename(state)

    def check_types(self, dtypes: Mapping[str, torch.dtype], place: str) -> None:
        """Refuse numbers of another kind than the model's: copying them would change them.

        Raises:
            MismatchError: If there are any.
        """
        for key, dtype in dtypes.items():
            holds = f"{place}: {key} holds {str(dtype).removeprefix('torch.')}, expected"
            if dtype.is_complex and key in self.shapes and key not in self._complex:
                numbers = "floating-point numbers" if key in self.floats else "integers"
                raise MismatchError(
                    f"{holds} {numbers} without an imaginary part.",
                    "Build this part of the network with complex weights (dtype=torch.cfloat) in"
                    " the code that --model names; an inferred MLP is real.",
                )
            if key in self._complex and not dtype.is_complex:
                # If the imaginary part was lost, 0 in its place would make another network.
                raise MismatchError(
                    f"{holds} complex numbers.",
                    "Save the weights as they are in the model, without converting them to a real"
                    " dtype; where they are real, build the network with real weights.",
                )
            if key in self.floats and not dtype.is_floating_point:
                raise MismatchError(
                    f"{holds} floating-point numbers.",
                    "Quantized weights are not read: save them as floats.",
                )


def has_custom_loading(model: nn.Module) -> bool:
    """Return whether a module of the model has load hooks or overrides how torch loads."""
    return type(model).load_state_dict is not nn.Module.load_state_dict or any(
        module._load_state_dict_pre_hooks
        or type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
        for module in model.modules()
    )


def fill_custom(
    model: nn.Module, expected: Expected, state: Mapping[str, Tensor], place: str
) -> set[str]:
    """Return the entries that custom loading left as they were, after filling a network by it.

    Such loading may accept other keys than the network's. The arguments are those of `fill_model`.
    """
    missing, _, _ = expected.differences({key: tuple(v.shape) for key, v in state.items()})
    entries = {key: model.state_dict()[key] for key in missing}
    before = {key: value.clone() for key, value in entries.items()}
    for value in entries.values():
        value.copy_(_mark(value))
    try:
        fill_model(model, expected, state, place)
    finally:
        now = model.state_dict()
        same = {key for key in missing if torch.equal(now[key], _mark(now[key]))}
        for key in same:
            now[key].copy_(before[key])
    return same


def _mark(like: Tensor) -> Tensor:
    """Return values that no checkpoint holds."""
    if like.dtype == torch.bool:
        return torch.ones_like(like)
    limits = torch.finfo if like.is_floating_point() or like.is_complex() else torch.iinfo
    return torch.full_like(like, limits(like.dtype).max)


def fill_model(
    model: nn.Module, expected: Expected, state: Mapping[str, Tensor], place: str
) -> None:
    """Copy a state dict, under the model's names, into a network; its dtype and device are kept.

    Copied, not assigned: a network may hold a parameter in a second place (a list, a closure), and
    that place must see the new weights. Through train mode and back to eval mode: a layer that
    merges weights in eval mode (LoRA) takes them apart before and merges the new ones after.

    Raises:
        MismatchError: If anything is missing, unexpected, of another shape, or differs between tied
            names.
    """
    complete = expected.translate(state, place)
    for keys in expected.tied:
        _tie(complete, keys, place)
    expected.check_types({key: value.dtype for key, value in complete.items()}, place)
    try:
        model.train()
        model.load_state_dict(complete, strict=True)
    except Exception as error:  # torch raises RuntimeError, the user's load hooks anything
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        raise mismatch(expected, shapes, place, error) from error
    model.requires_grad_(False)
    model.eval()


def mismatch(
    expected: Expected, shapes: Shapes, place: str, error: Exception | None = None
) -> MismatchError:
    """Return the error that lists how a checkpoint differs from a model.

    `error` is torch's, for differences that keys and shapes alone do not show.
    """
    missing, unexpected, wrong = expected.differences(shapes)
    shapes = expected.renamed(shapes)
    parts = []
    if missing:
        parts.append(f"missing: {listed((_with_nearest(key, unexpected) for key in missing), 4)}")
    if unexpected:
        parts.append(f"unexpected: {listed(unexpected, 4)}")
    if wrong:
        shown = [
            f"{key} has shape {list(shapes[key])}, expected {list(expected.shapes[key])}"
            for key in wrong
        ]
        parts.append(f"wrong shape: {listed(shown, 4)}")
    if not parts:
        parts.append(one_line(error or ""))
    return MismatchError(
        f"{place}: the weights do not fit the model; {'; '.join(parts)}.",
        "Check --model and --model-arg, or leave the file out with --pattern.",
    )


def _tie(state: dict[str, Tensor], keys: list[str], place: str) -> None:
    present = [key for key in keys if key in state]
    if not present:
        return
    first = state[present[0]]
    for key in present[1:]:
        if not same_values(first, state[key]):
            raise MismatchError(
                f"{place}: {present[0]} and {key} are one parameter in the model but differ in"
                " the file.",
                "Build the model untied, as it was trained.",
            )
    for key in keys:
        state.setdefault(key, first)


def same_values(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same values; NaN is equal to itself."""
    if first.shape != second.shape:
        return False
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True
    # NaN of a diverged run equals itself here: its rows are marked as not finite later.
    return bool(((first == second) | ((first != first) & (second != second))).all())  # noqa: PLR0124  # NaN in any dtype


def _with_nearest(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f"{key} (nearest in the file: {near[0]})" if near else key
