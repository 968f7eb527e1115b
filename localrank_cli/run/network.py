"""Makes the network of a series: from the user's code, or from the weights alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.checkpoints.weights import WRAPPERS, candidates
from localrank_cli.errors import ModelError, Note, listed
from localrank_cli.model.build import existing_modules
from localrank_cli.model.hf import CONFIG, hf_factory, read_config, same_network
from localrank_cli.model.mlp import InferredMlp, infer_mlp
from localrank_cli.model.twice import Builder, Network, build_twice
from localrank_cli.model.unsaved import state_aliases
from localrank_cli.options.resolve import ModelChoice
from localrank_cli.results.record import unsaved_message
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import import_object


def make_hf_model(
    files: Sequence[CheckpointFile], folder: Path, arguments: Mapping[str, Any]
) -> Network:
    """Builds the network that all checkpoints of a series are of.

    Args:
        files: The checkpoints, by step.
        folder: The series.
        arguments: `--model-arg`, which override entries of the config.

    Returns:
        The network, with weights that are still to be filled in.

    Raises:
        ModelError: If there is no config, it does not serve, or the checkpoints' configs differ.
    """
    places = list(dict.fromkeys(_config_folder(file, folder) for file in files))
    first = read_config(places[0])
    for place in places[1:]:
        if not same_network(first, read_config(place)):
            raise ModelError(
                f"{place / CONFIG} describes another network than {places[0] / CONFIG}.",
                "Choose the checkpoints of one network with --pattern GLOB.",
            )
    existing = existing_modules()
    built = build_twice(Builder(hf_factory(places[0]), arguments, "--model hf", existing))
    return replace(built, again=None)  # code of transformers: nothing is drawn outside its modules


def _config_folder(file: CheckpointFile, folder: Path) -> Path:
    own = file.folder or file.path.parent
    return own if (own / CONFIG).is_file() else folder


def make_model(
    choice: ModelChoice,
    place: tuple[Sequence[CheckpointFile], Path],
    first: State | None,
    note: Note,
) -> Network:
    """Make a network of code, or of the names and shapes of its weights.

    Args:
        choice: Where the network comes from.
        place: The checkpoints, by step, and the folder of the series.
        first: The weights in the first checkpoint.
        note: Takes each note for the user.

    Returns:
        The network, with weights that are still to be filled in.
    """
    if choice.is_hf:
        return make_hf_model(*place, choice.arguments)
    existing = existing_modules()
    arguments, name = choice.arguments, choice.description
    if choice.factory is not None:
        return build_twice(Builder(choice.factory, arguments, name, existing))
    if choice.code is not None:
        with seeded(SEED):
            factory: Any = import_object(choice.code, "--model")
        return build_twice(Builder(factory, arguments, f"--model {name}", existing, choice.code))
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
    return Network(model.requires_grad_(False))


def check_unsaved(
    built: Network, name: str, unfilled: Iterable[str], note: Note, *, allowed: bool
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
    if built.note:
        note(built.note)
    filled = (state_aliases(built.model) | _state_names(built.model)) - set(unfilled)
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


def _state_names(model: nn.Module) -> set[str]:
    return set(model.state_dict())
