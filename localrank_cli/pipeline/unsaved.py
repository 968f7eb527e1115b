"""Parts of a network that are drawn when it is built, and that no checkpoint holds."""

from collections.abc import Iterable, Sequence

from torch import nn

from localrank_cli.errors import ModelError, Note, listed
from localrank_cli.model.twice import Built
from localrank_cli.model.unsaved import is_loaded


def check_unsaved(
    built: Built, name: str, unfilled: Iterable[str], note: Note, *, allowed: bool
) -> tuple[str, ...]:
    """Refuse a network that is another one at every start, unless that was allowed.

    Args:
        built: The network, moved to its device and dtype.
        name: Of the network, for messages.
        unfilled: Entries of the state dict that some checkpoint leaves as they are.
        note: Takes each note for the user.
        allowed: Whether `--allow-unsaved` was given.

    Returns:
        Names of what no checkpoint holds, where that is allowed.

    Raises:
        ModelError: If there are any and it is not, or if even a fixed seed gives others.
    """
    filled = (is_loaded(built.model) | _state_names(built.model)) - set(unfilled)
    names = tuple(sorted(built.drawn - filled))
    if not names:
        return ()
    if not allowed:
        raise _refusal(name, names, is_shared=built.is_shared)
    restless = tuple(sorted(built.restless - filled))
    if restless:
        verb = "differs" if len(restless) == 1 else "differ"
        raise ModelError(
            f"{name}: {listed(restless)} {verb} at every start even with torch, numpy and random"
            " seeded: --allow-unsaved needs the same network each time.",
            "Seed the generator that draws it (torch.Generator().manual_seed(0),"
            " numpy.random.default_rng(0), random.Random(0)).",
        )
    note(unsaved_message(names))
    return names


def _refusal(name: str, names: Sequence[str], *, is_shared: bool) -> ModelError:
    one = len(names) == 1
    if is_shared:
        return ModelError(
            f"{name}: no checkpoint holds {listed(names)}, and the module was built outside the"
            " function, so that two builds cannot be compared.",
            "Build the module inside the function, or pass --allow-unsaved if nothing in it is"
            " drawn at random.",
        )
    return ModelError(
        f"{name}: {listed(names)} {'differs' if one else 'differ'} each time the network is built,"
        f" and no checkpoint holds {'it' if one else 'them'}: the numbers would not be those of the"
        " network that was trained.",
        "Draw with the seed of the training in the code that builds it (torch.manual_seed(0) before"
        " the draw), or keep tensors in the checkpoints: self.register_buffer(NAME, TENSOR)."
        " --allow-unsaved takes what a fixed seed gives, and says so in column message.",
    )


def unsaved_message(names: Sequence[str]) -> str:
    """Word what the table says of a network that was let through.

    Args:
        names: From `check_unsaved`.

    Returns:
        One line; empty where there are none.
    """
    return f"--allow-unsaved: no checkpoint holds {', '.join(names)}" if names else ""


def _state_names(model: nn.Module) -> set[str]:
    return set(model.state_dict())
