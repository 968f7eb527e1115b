"""Build the network of a series: from code, a config of transformers, or the weights alone."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, cast

from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.entries import level
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.checkpoints.weights import (
    parts,
    second_networks,
    without_loss,
    without_masks,
    without_wrappers,
)
from localrank_cli.errors import MismatchError, ModelError, Note, UnreadableError, listed
from localrank_cli.model.arguments import Source, find_arguments
from localrank_cli.model.build import existing_modules
from localrank_cli.model.hf import (
    CONFIG,
    HfModel,
    hf_model,
    read_config,
    refuse_folder,
    refuse_other_weights,
    same_network,
)
from localrank_cli.model.hf_size import Held
from localrank_cli.model.hf_weights import HfExpected
from localrank_cli.model.mlp import (
    USE_MODEL,
    InferredMlp,
    MlpLayout,
    infer_mlp,
    layer_groups,
    like_factors,
)
from localrank_cli.model.twice import Builder, Given, Network, build_twice
from localrank_cli.model.unsaved import state_aliases
from localrank_cli.options.needs import EMBEDDING, HF, HfConfig, find_hf_config
from localrank_cli.options.resolve import ModelChoice
from localrank_cli.results.record import unsaved_message
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import import_object

_Value = TypeVar("_Value")
HPARAMS = "hparams.yaml"  # Lightning's loggers write it beside the folder of checkpoints


def make_model(
    choice: ModelChoice,
    place: tuple[Sequence[CheckpointFile], Path],
    weights: tuple[State | None, Held],
    sources: Sequence[Source],
    note: Note,
    *,
    skips: bool = False,
) -> Network:
    """Build the network of a series; its weights are still to be filled in.

    `place` holds the checkpoints, by step, and their folder; `weights` those in the first of them,
    from whose names and shapes a plain MLP is inferred, and how much the largest one holds.
    `sources` hold the arguments that the checkpoints record, by step, and `skips` is whether
    checkpoints that cannot be analyzed are left out.
    """
    first, held = weights
    if choice.is_hf:
        return make_hf_model(*place, choice.arguments, held, skips=skips)
    if not choice.is_inferred:
        try:
            return _of_code(choice, sources, note)
        except ModelError as error:
            raise _with_advice_of_hparams(error, place[1]) from error
    assert first is not None
    try:
        layout = _layout(first)
    except ModelError as error:
        advice = _advice_of_parts(first)
        if not advice:
            raise _with_advice_of_config(error, *place, held) from error
        raise ModelError(error.what, f"{error.advice} {advice}") from error
    pairs = like_factors({key: tuple(tensor.shape) for key, tensor in first.items()})
    if pairs and not choice.is_seen:
        raise ModelError(
            f"{listed([f'{name}.0 and {name}.1' for name in pairs], 2)} may be two factors of one"
            " layer, or two layers with an activation between them; the weights do not show which.",
            USE_MODEL,
        )
    groups = layer_groups(layout.names)
    if groups and not choice.is_seen:
        raise ModelError(
            f"the layers form a chain, but are in several parts ({listed(groups, 4)}), and weights"
            " do not show what is between them.",
            f"{USE_MODEL} {_advice_of_parts(first)}",
        )
    note(
        f"no --model: read as a plain MLP {layout.description} with {choice.activation}"
        " between its layers"
    )
    model = InferredMlp(layout, choice.activation)
    model.eval()
    return Network(model.requires_grad_(False))


def _advice_of_parts(state: State) -> str:
    """Return the advice to read one part alone, or "" where none is a plain MLP."""
    names = [name for name, part in parts(state).items() if _is_one_mlp(part)]
    if not names:
        return ""
    return f"To read one part alone as the network, give --weights {' or '.join(names[:4])}."


def _is_one_mlp(state: State) -> bool:
    return can_infer(state) and not layer_groups(_layout(state).names)


def _of_code(choice: ModelChoice, sources: Sequence[Source], note: Note) -> Network:
    name, factory = choice.description, choice.factory
    if isinstance(factory, Given):  # nothing is built, so that there is nothing to compare
        return Network(factory())
    existing = existing_modules()
    if choice.code is not None:
        name = f"--model {name}"
        with seeded(SEED):
            factory = cast("Any", import_object(choice.code, "--model"))
    assert factory is not None
    recorded = find_arguments(factory, choice.arguments, sources, level)
    builder = Builder(factory, choice.arguments, name, existing, choice.code, recorded)
    network = replace(build_twice(builder), recorded=recorded)
    if recorded is not None:
        note(recorded.note(name, factory))
    return network


def _layout(state: State) -> MlpLayout:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    bare = without_wrappers(shapes)
    return infer_mlp(bare, in_order=not all(tensor.is_meta for tensor in state.values()))


def without_loss_layer(state: State) -> State:
    """Return weights without those of a loss, where the rest is a plain MLP.

    A loss may hold a matrix that fits as the last layer, as ArcFace's does. One that fits before
    others by its shape is taken for a layer.
    """
    rest = without_loss(state)
    if len(rest) == len(state) or not can_infer(rest):
        return state
    if not can_infer(state):
        return rest
    names, kept = _layout(state).names, _layout(rest).names
    return rest if names[: len(kept)] == kept else state


def can_infer(state: State) -> bool:
    """Return whether weights are those of a plain MLP, in an order that is certain."""
    try:
        _layout(state)
    except ModelError:
        return False
    return True


def networks_in(state: State) -> list[str]:
    """Return the networks in weights that fit as one chain and are several by their names.

    A generator, and a discriminator of what it returns, are such. Empty: one network, or none.
    Each has the name that `--weights` takes, with what wraps both (`module.generator`).
    """
    if not can_infer(state):
        return []
    state = without_masks(state) or state
    bare = _below(without_wrappers(state))
    rest, others = second_networks(bare)
    seconds = [prefix for prefix, part in others.items() if can_infer(part)]
    if not seconds or not can_infer(rest):
        return []
    tops = {key.split(".", maxsplit=1)[0] for key in rest}
    # Of `0.weight` and `2.weight` there is no prefix to choose by.
    names = [*(tops if len(tops) == 1 else ()), *seconds]
    outer = _n_common(state)
    stored = {
        key.split(".", maxsplit=1)[0]: ".".join(name.split(".")[: outer + 1])
        for key, name in zip(bare, state, strict=True)
    }
    return [stored[name] for name in names]


def _below(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return a state dict by names without the parts that they all begin with."""
    outer = _n_common(state)
    return {".".join(key.split(".")[outer:]): value for key, value in state.items()}


def _n_common(names: Iterable[str]) -> int:
    """Return how many of their first parts all names have in common."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _with_advice_of_config(
    error: ModelError, files: Sequence[CheckpointFile], folder: Path, held: Held
) -> ModelError:
    """Return the error of an inference, with other advice where a config.json describes a model."""
    config = find_hf_config(config_folder(files[0], folder))
    if config is None:
        return error
    wrt = ""
    if config.takes_tokens:
        wrt = f" and, for tokens, --wrt {embedding_of_hf(config, held) or EMBEDDING}"
    return ModelError(
        error.what,
        f"{config.place} names transformers' {config.architecture}: give --model {HF}{wrt}.",
    )


def _with_advice_of_hparams(error: ModelError, folder: Path) -> ModelError:
    """Return the error of a class that lacks arguments, naming Lightning's file of them."""
    found = [path for path in (folder / HPARAMS, folder.parent / HPARAMS) if path.is_file()]
    if not found or "--model-arg" not in error.advice:
        return error
    return ModelError(error.what, f"{error.advice} {found[0]} may hold their values.")


def embedding_of_hf(config: HfConfig, held: Held) -> str:
    """Return the name of the module that embeds tokens; empty if it is not known."""
    if config.embedding:
        return config.embedding
    try:
        return hf_model(config.place.parent, {}, held).embedding()
    except ModelError:  # reported when the network is built
        return ""


def make_hf_model(
    files: Sequence[CheckpointFile],
    folder: Path,
    arguments: Mapping[str, Any],
    held: Held,
    *,
    skips: bool = False,
) -> Network:
    """Build a network of transformers from the first config beside checkpoints, which are by step.

    `arguments` override entries of the config, and `held` is how much the largest checkpoint holds.
    With `skips`, the first config of which a network can be made counts; `check_config` refuses
    the others. The weights are still to be filled in.

    Raises:
        ModelError: If there is no usable config.
    """
    places = list(dict.fromkeys(config_folder(file, folder) for file in files))
    errors: list[ModelError] = []
    for place in places if skips else places[:1]:
        try:
            source = hf_model(place, arguments, held)
            network = build_twice(Builder(source.build, {}, "--model hf", existing_modules()))
        except ModelError as error:
            errors.append(error)
            continue
        # transformers draws nothing outside its modules, so no second build is needed.
        return replace(network, rebuild=None, expected_of=partial(HfExpected, source=source))
    raise errors[0]


def check_config(file: CheckpointFile, folder: Path, source: HfModel) -> None:
    """Refuse a checkpoint whose config does not describe the network that was built.

    Raises:
        UnreadableError: If its config cannot be read.
        MismatchError: If it describes another network, or not the weights that were found.
    """
    place = config_folder(file, folder)
    try:
        found = read_config(place)
    except ModelError as error:
        raise UnreadableError(error.what, error.advice) from error
    try:
        refuse_folder(place, found)
        refuse_other_weights(place, found, [file.path])
    except ModelError as error:
        raise MismatchError(error.what, error.advice) from error
    if not same_network(source.entries, found):
        raise MismatchError(
            f"{place / CONFIG} describes a different network from {source.folder / CONFIG}.",
            "Choose the checkpoints of one network with --pattern GLOB.",
        )


def config_folder(file: CheckpointFile, folder: Path) -> Path:
    """Return the folder of the config.json of a checkpoint: its own, or that of the series."""
    beside = file.folder or file.path.parent
    # One that is no file (a FIFO, a folder) is refused when it is read.
    is_elsewhere = not os.path.lexists(beside / CONFIG) and os.path.lexists(folder / CONFIG)
    return folder if is_elsewhere else beside


def check_unsaved(
    network: Network, name: str, unfilled: Iterable[str], note: Note, *, allowed: bool
) -> tuple[str, ...]:
    """Return the names of parts that differ between builds and are in no checkpoint.

    `unfilled` are entries of the state dict that some checkpoint does not fill, and `allowed` is
    whether `--allow-unsaved` was given.

    Raises:
        ModelError: If there are such parts and they are not allowed, or differ under one seed too.
    """
    if network.note:
        note(network.note)
    model = network.model
    filled = (state_aliases(model) | set(model.state_dict())) - set(unfilled)
    names = tuple(sorted(network.drawn - filled))
    if not names:
        return ()
    if not allowed:
        raise _refusal(name, names, is_shared=network.is_shared)
    unstable = tuple(sorted(network.unstable - filled))
    if unstable:
        verb = "differs" if len(unstable) == 1 else "differ"
        raise ModelError(
            f"{name}: {listed(unstable)} {verb} at every start even with torch, numpy and random"
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
        "Draw with the training seed in the code that builds it (torch.manual_seed(0) before"
        " the draw), or keep tensors in the checkpoints: self.register_buffer(NAME, TENSOR)."
        " --allow-unsaved uses the values that a fixed seed gives, and the column message says so.",
    )
