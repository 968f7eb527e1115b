"""The activation of an inferred MLP whose files hold the whole module: its classes show it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from localrank_cli.checkpoints.modules import HeldModule
from localrank_cli.errors import ModelError, listed, printable, shortened
from localrank_cli.model.mlp import ACTIVATIONS
from localrank_cli.options.resolve import ModelChoice, SeriesOptions

_LINEAR = "torch.nn.modules.linear.Linear"
# These hand on what they are given.
_PASSING = (
    "torch.nn.modules.container.Sequential",
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.optim.swa_utils.AveragedModel",
    "torch._dynamo.eval_frame.OptimizedModule",
)
# Nothing in eval mode, for points that are vectors.
_NOTHING = ("torch.nn.modules.dropout.", "torch.nn.modules.flatten.Flatten")
_LOSSES = "torch.nn.modules.loss."
_PLAIN = {
    f"{type(made).__module__}.{type(made).__qualname__}": (name, made)
    for name, made in ((name, make()) for name, make in ACTIVATIONS.items())
}
_IDENTITY = "identity"
_MODEL = "Give the network's code: --model path/to/file.py:name."


def given_activation(options: SeriesOptions) -> str | None:
    """Return `--activation` of a series, or None if it is the default."""
    is_given = "activation" in options.from_user | options.from_folder
    return options.options.activation if is_given else None


def with_held_activation(
    choice: ModelChoice, modules: Sequence[HeldModule], given: str | None, place: object
) -> ModelChoice:
    """Return the choice of an inferred MLP with the activation that the file's module has.

    Args:
        choice: Of an inferred MLP.
        modules: Those of the first file; empty where it holds a state dict.
        given: `--activation`, if it was given.
        place: The file, for messages.

    Raises:
        ModelError: If the module is not a plain MLP, or has another activation than the given one;
            or if its own forward pass, which is not in the file, decides and none was given.
    """
    leaves = [module for module in modules if module.is_leaf and not _is_nothing(module)]
    linears = [index for index, module in enumerate(leaves) if module.kind == _LINEAR]
    if not linears:
        return choice
    own = [one for one in modules if not (one.is_leaf or _only_passes(one))]
    if own:
        _check_own_forward(leaves, choice, given, f"{place}: holds a {own[0].kind}")
        return choice
    between = {_of(leaves[a + 1 : b]) for a, b in pairwise(linears)}
    odd = {name for name in between if name not in ACTIVATIONS} | _odd_before(leaves[: linears[0]])
    if odd or len(between) > 1:
        kinds = listed(sorted(odd or between))
        raise ModelError(
            f"{place}: holds a module with {kinds}, which is more than Linear layers with one"
            " activation between them.",
            _MODEL,
        )
    found = next(iter(between), choice.activation)
    if given is not None and given != found:
        raise ModelError(
            f"--activation {given}: the module in {place} has {found} between its layers.",
            "Leave out --activation, or give the network's code with --model.",
        )
    return replace(choice, activation=found, is_seen=True)


def _check_own_forward(
    leaves: Sequence[HeldModule], choice: ModelChoice, given: str | None, what: str
) -> None:
    """Refuse a class of the user's with other parts than the assumed activation."""
    names = {_of([one]) for one in leaves if one.kind != _LINEAR}
    others = sorted(names - {choice.activation, _IDENTITY})
    if others and given is None:
        known = next((name for name in others if name in ACTIVATIONS), choice.activation)
        raise ModelError(
            f"{printable(what)} with {listed(others)}, and its forward pass is not in the file.",
            f"{_MODEL} If it is a plain MLP with {known} between its layers, give --activation"
            f" {known}.",
        )


def _only_passes(module: HeldModule) -> bool:
    return module.kind in _PASSING and not module.has_hooks


def _is_nothing(module: HeldModule) -> bool:
    return module.kind.startswith((*_NOTHING, _LOSSES)) and not module.has_hooks


def _odd_before(leaves: Sequence[HeldModule]) -> set[str]:
    return {_of([one]) for one in leaves} - {_IDENTITY}


def _of(leaves: Sequence[HeldModule]) -> str:
    """Return the one activation among modules, or words for what else they are."""
    names = [name for name in map(_name, leaves) if name != _IDENTITY]
    return _IDENTITY if not names else " and ".join(names)


def _name(module: HeldModule) -> str:
    """Return the name of an activation with its usual settings, or words for another module."""
    shown = printable(module.kind.rpartition(".")[2])
    if module.has_hooks:
        return f"hooks of {shown}"
    name, made = _PLAIN.get(module.kind, ("", None))
    if made is None:
        return shown
    usual = vars(made)
    unusual = [
        f"{key}={printable(shortened(value))}"
        for key, value in module.settings.items()
        if usual.get(key) != value
    ]
    return f"{shown} ({', '.join(unusual)})" if unusual else name
