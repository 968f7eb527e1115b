"""Makes the network of a series: from the user's code, or from the weights alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.prefixes import WRAPPERS, candidates
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import Note
from localrank_cli.model.build import SEED, modules_there_are
from localrank_cli.model.mlp import InferredMlp, infer_mlp
from localrank_cli.model.twice import Built, build_twice
from localrank_cli.pipeline.hf import make_hf_model
from localrank_cli.pipeline.settings import ModelChoice
from localrank_cli.seeds import seeded
from localrank_cli.userimport import import_object


def make_model(
    choice: ModelChoice,
    place: tuple[Sequence[CheckpointFile], Path],
    first: State | None,
    note: Note,
    *,
    allowed: bool,
) -> Built:
    """Make a network of code, or of the names and shapes of its weights.

    Args:
        choice: Where the network comes from.
        place: The checkpoints, by step, and the folder of the series.
        first: The weights in the first checkpoint.
        note: Takes each note for the user.
        allowed: As for `build_twice`.

    Returns:
        The network, with weights that are still to be filled in.
    """
    if choice.is_hf:
        return make_hf_model(*place, choice.arguments, allowed=allowed)
    there = modules_there_are()
    arguments, name = choice.arguments, choice.description
    if choice.factory is not None:
        return build_twice(choice.factory, arguments, name, there, allowed=allowed)
    if choice.code is not None:
        with seeded(SEED):
            factory: Any = import_object(choice.code, "--model")
        return build_twice(factory, arguments, f"--model {name}", there, allowed=allowed)
    assert first is not None
    shapes = {key: tuple(tensor.shape) for key, tensor in first.items()}
    *_, (_, bare) = candidates(shapes, WRAPPERS)
    in_order = not all(tensor.is_meta for tensor in first.values())
    layout = infer_mlp(bare, in_order)
    note(
        f"no --model: read as a plain MLP {layout.description} with {choice.activation}"
        " between its layers"
    )
    model = InferredMlp(layout, choice.activation)
    model.eval()
    return Built(model.requires_grad_(False))
