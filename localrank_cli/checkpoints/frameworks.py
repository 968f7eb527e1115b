"""Where training frameworks keep weights, averages, steps and epochs in their files.

Each entry follows the code that writes it: Lightning's trainer and its WeightAveraging and
StochasticWeightAveraging callbacks, timm's CheckpointSaver, fairseq's Trainer.state_dict,
mmengine's Runner.save_checkpoint and EMAHook, Composer's State.state_dict, detectron2's
PeriodicCheckpointer, nanoGPT's train.py, torchtitan's CheckpointManager.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.bundle import NO_WEIGHTS, Bundle, find_bundle
from localrank_cli.checkpoints.content import (
    GLOBAL_KEYS,
    STEP_KEYS,
    Content,
    State,
    epoch_in,
    integer,
    per_epoch_in,
    printable_name,
    step_in,
)
from localrank_cli.checkpoints.entries import find_entries
from localrank_cli.checkpoints.foreign import conversion, line_of_python
from localrank_cli.checkpoints.modules import held_modules, object_at
from localrank_cli.checkpoints.names import NO_NUMBER
from localrank_cli.checkpoints.pickles import (
    NO_MODULE,
    NO_TENSOR,
    NO_VALUES,
    Inert,
    LostTensor,
    as_tensor,
    is_array,
    name_of,
    plain,
)
from localrank_cli.checkpoints.weights import is_average, parts
from localrank_cli.errors import NoWeightsError, UnreadableError

# Where an average over training may be; `params_ema` is BasicSR's.
EMA_KEYS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "model_state_dict_ema",
    "ema_model_state_dict",
    "ema_state",
    "params_ema",
    "swa_state_dict",
)
ONLINE = "online_model"  # the weights that ema-pytorch averages
# Where a step or epoch may be, beside the top level. Nothing else is searched, as the settings of a
# run (hyper_parameters, args) hold numbers of the same names.
PLACES: tuple[tuple[str | int, ...], ...] = (
    ("meta",),  # mmengine
    ("state", "timestamp"),  # Composer
    ("state", "timestamp", "Timestamp"),  # Composer, later versions
    ("optimizer_history", -1),  # fairseq
    ("extra_state", "train_iterator"),  # fairseq: the epoch
    ("train_state",),  # torchtitan
)
COUNTERS = frozenset((*STEP_KEYS, "epoch", "batch"))
_AVERAGED = ("n_averaged", "steps")  # of torch's and mmengine's averaged models
CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "module")
# Keys that only lead to a state dict: Composer's `state.model`, torch's `app.model`.
_PASSAGES = ("state", "app", "current_model_state")
# A tensor that repeats its values (expand) is small in its file; a larger one is not a weight.
MAX_REPEATED_BYTES = 2**30
_MAX_DEPTH = 6
_LEAVE_OUT = "leave it out with --pattern GLOB."
_SAVE = "Save model.state_dict()"
_CONVERTED = "converted"
_DENSE = "Save it as a dense floating-point tensor; for a quantized network, save the network from"
" before it was quantized."
WITH_CODE = (
    "Convert it if you trust it: torch.save(model.state_dict(), FILE); or leave it out with"
    " --pattern; or, if you trust whoever made the file, pass --trust-pickle, which may run any"
    " code in it."
)


def progress(loaded: Mapping[str, Any]) -> tuple[int | None, str, int | None]:
    """Return the progress of the training: the step, the entry that holds it, and the epoch.

    None and "" where there is none. A number that cannot be a step is returned as it is.
    """
    inner = {place: entry for place in PLACES if (entry := _at(loaded, place)) is not None}
    steps = [step_in(loaded, GLOBAL_KEYS), step_in(loaded)]
    # Counters from the start of training, wherever they are, come before those within an epoch.
    steps[1:1] = [_under(place, step_in(entry, GLOBAL_KEYS)) for place, entry in inner.items()]
    steps += [_under(place, _step_at(entry, place)) for place, entry in inner.items()]
    found = [pair for pair in steps if pair[0] is not None]
    counted = [pair for pair in found if not _is_unset(pair[0])]
    step, source = (counted or found or [(None, "")])[0]
    epochs = [epoch_in(loaded), *map(epoch_in, inner.values())]
    return step, source, next((epoch for epoch in epochs if epoch is not None), None)


def is_global(source: str) -> bool:
    """Return whether an entry from `progress` counts from the start of training by its name.

    Entries such as `step` may restart in each epoch.
    """
    *place, key = source.split(".")
    return key in GLOBAL_KEYS or "timestamp" in map(str.lower, place)  # Composer's batch


def swapped_average(loaded: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of the average and of the training weights where a framework swapped them.

    Lightning's WeightAveraging moves the training weights to `current_model_state`, and mmengine's
    EMAHook to `ema_state_dict`, so that whoever loads `state_dict` gets the average. None where
    nothing was moved.
    """
    if "state_dict" not in loaded:
        return None
    if isinstance(loaded.get("current_model_state"), Mapping):
        return "state_dict", "current_model_state"
    meta = loaded.get("meta")
    if (
        isinstance(meta, Mapping)
        and "mmengine_version" in meta
        and isinstance(loaded.get("ema_state_dict"), Mapping)
    ):
        return "state_dict", "ema_state_dict"
    return None


def callback_averages(loaded: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return averages that a trainer's callback or extra state keeps: place -> state dict."""
    found: dict[str, Mapping[str, Any]] = {}
    callbacks = loaded.get("callbacks")
    if isinstance(callbacks, Mapping):
        for name, state in callbacks.items():
            average = state.get("average_model_state") if isinstance(state, Mapping) else None
            if isinstance(average, Mapping):
                found[f"callbacks.{name}.average_model_state"] = average
    extra = loaded.get("extra_state")
    if isinstance(extra, Mapping) and isinstance(extra.get("ema"), Mapping):
        found["extra_state.ema"] = extra["ema"]  # fairseq
    return found


def without_counter(state: State) -> tuple[State, bool]:
    """Return a state dict without the counter of an averaged model, and whether it had one.

    torch.optim.swa_utils.AveragedModel and mmengine's averaged models hold the network as `module`
    and count the averaged steps.
    """
    counters = [key for key in _AVERAGED if _is_counter(state.get(key))]
    rest = {key: value for key, value in state.items() if key not in counters}
    if not counters or not rest or not all(key.startswith("module.") for key in rest):
        return state, False
    return rest, True


def _is_counter(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _under(place: tuple[str | int, ...], found: tuple[int | None, str]) -> tuple[int | None, str]:
    return found[0], ".".join(map(str, (*place, found[1]))) if found[1] else ""


def _is_unset(step: int | None) -> bool:
    return step is not None and NO_NUMBER < step < 0


def _step_at(inner: Mapping[str, Any], place: tuple[str | int, ...]) -> tuple[int | None, str]:
    if "timestamp" in place:
        found = integer(inner.get("batch"))
        return (found, "batch") if found is not None else (None, "")
    if place[-1] == "train_iterator":
        return None, ""
    return step_in(inner)


def _at(loaded: Any, place: Sequence[str | int]) -> Mapping[str, Any] | None:
    for key in place:
        if isinstance(key, str) and isinstance(loaded, Mapping):
            loaded = loaded.get(key)
        elif isinstance(key, int) and isinstance(loaded, (list, tuple)) and loaded:
            loaded = loaded[key]
        else:
            return None
    return loaded if isinstance(loaded, Mapping) else None


def unwrap(loaded: object, path: Path) -> Content:
    """Return the state dicts in a loaded object: a bare one, or those under the usual keys.

    Which candidate fits is decided against the model.

    Raises:
        NoWeightsError: If there is none.
        UnreadableError: If the place of the weights is not known, or a tensor has no plain values.
    """
    whole, loaded = loaded, _state_of(loaded)
    if not isinstance(loaded, Mapping):
        _refuse_bundle(find_bundle(loaded, _holds_states), path)
        raise _absence(loaded)(*_no_mapping(loaded, path))
    arrays = _arrays(loaded, path)
    if arrays is not None:
        raise _absence(loaded)(*arrays)
    states, averaged = find_states(loaded)
    bundle = find_bundle(loaded, _holds_states)
    has_names = bundle is not None and bool(bundle.named)  # which --weights takes
    if not states and not has_names:
        _refuse_bundle(bundle, path)
    is_alone = "" in states and not any(_inner_states(loaded))
    only_states = is_alone or (bundle is not None and not has_names)
    others = {} if only_states else other_states(loaded, states)
    if not states and not others:
        raise _absence(loaded)(*_no_state(loaded, path))
    for state in states.values():
        _check_plain(state, path)
    step, source, epoch = progress(loaded)
    per_epoch = per_epoch_in(loaded, source)
    states |= others
    averaged |= {place for place in others if is_average(place)}
    modules = {key: held_modules(object_at(whole, key)) for key in states}
    return Content(
        states,
        step,
        source,
        epoch,
        averaged,
        per_epoch,
        frozenset(others),
        bundle,
        find_entries(loaded),
        {key: found for key, found in modules.items() if found},
    )


def _refuse_bundle(bundle: Bundle | None, path: Path) -> None:
    if bundle is not None:
        raise UnreadableError(f"{bundle.describe(path)}.", bundle.advice(path))


def _holds_states(value: object) -> bool:
    inner = _state_of(value)
    return (
        isinstance(inner, Mapping)
        and "param_groups" not in inner
        and (bool(find_states(inner)[0]) and holds_weights(value))
    )


def _absence(loaded: object) -> type[UnreadableError]:
    return UnreadableError if holds_weights(loaded) else NoWeightsError


def holds_weights(loaded: object, depth: int = 0) -> bool:
    """Return whether an object holds named tensors of floats that are not an optimizer's.

    Objects that are not read, and deep nesting, are taken to hold them.
    """
    if depth > _MAX_DEPTH or isinstance(loaded, nn.Module):
        return True
    if isinstance(loaded, Inert) and not is_array(loaded):
        return depth == 0
    if isinstance(loaded, Mapping):
        return "param_groups" not in loaded and _mapping_holds_weights(loaded, depth)
    if isinstance(loaded, (list, tuple)):
        return any(holds_weights(value, depth + 1) for value in loaded)
    return False


def _mapping_holds_weights(loaded: Mapping[Any, Any], depth: int) -> bool:
    return (
        any(isinstance(loaded.get(key), Inert) for key in (*CONTAINER_KEYS, *EMA_KEYS))
        or any(_is_weight(key, value) for key, value in loaded.items())
        or any(
            holds_weights(value, depth + 1)
            for key, value in loaded.items()
            if not NO_WEIGHTS.match(str(key))
        )
    )


def _is_weight(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.ndim > 0
        and (value.is_floating_point() or value.is_complex())
    )


def find_states(loaded: Mapping[Any, Any]) -> tuple[dict[str, State], frozenset[str]]:
    """Return all state dicts in a whole checkpoint, and the places of averages.

    The dicts are named by their place, the training weights first.
    """
    raw: dict[str, State] = {}
    averages: dict[str, State] = {}
    for key, state in _candidates(loaded, "").items():
        weights, counted = without_counter(state)
        (averages if counted else raw)[key] = weights
    for key in EMA_KEYS:
        inner = _state_of(loaded.get(key))
        if isinstance(inner, Mapping):
            averages |= _candidates(inner, key, depth=1)
    for key, inner in callback_averages(loaded).items():
        averages |= _candidates(inner, key, depth=1)
    averages = {key: without_counter(state)[0] for key, state in averages.items()}
    for key, (online, average) in _pairs(averages).items():
        whole = averages.pop(key)
        raw[f"{key}.{online}"] = _under_prefix(whole, online)
        averages[f"{key}.{average}"] = _under_prefix(whole, average)
    swapped = swapped_average(loaded)
    if swapped is not None:
        average, training = swapped
        moved = raw.pop(training, None) or averages.pop(training, None)
        if average in raw:
            averages = {average: raw.pop(average)} | averages
        if moved is not None:
            raw = {training: moved} | raw
    return raw | averages, frozenset(averages)


def _pairs(averages: Mapping[str, State]) -> dict[str, tuple[str, str]]:
    """Return, by place, the prefixes of the training weights and of their average within one.

    The package ema-pytorch saves `online_model.*` and `ema_model.*` in one state dict.
    """
    found: dict[str, tuple[str, str]] = {}
    for key, state in averages.items():
        inner = parts(state)
        for prefix, part in inner.items():
            parent, _, last = prefix.rpartition(".")
            online = f"{parent}.{ONLINE}".lstrip(".")
            if last in EMA_KEYS and part.keys() == inner.get(online, {}).keys():
                found[key] = (online, prefix)
    return found


def _under_prefix(state: State, prefix: str) -> State:
    return {
        name[len(prefix) + 1 :]: value
        for name, value in state.items()
        if name.startswith(f"{prefix}.")
    }


def other_states(
    loaded: Mapping[Any, Any],
    known: Collection[str],
    prefix: str = "",
    depth: int = 0,
    *,
    on_meta: bool = False,
) -> dict[str, State]:
    """Return the state dicts at keys that no framework uses, by place: `generator`, `nets.g`.

    `on_meta` is whether the tensors are still to be read.
    """
    found: dict[str, State] = {}
    for key, value in loaded.items():
        place = f"{prefix}{key}"
        inner = _state_of(value)
        if not isinstance(key, str) or not isinstance(inner, Mapping) or place in known:
            continue
        if NO_WEIGHTS.match(key) or "param_groups" in inner:
            continue
        if not _is_state(inner):
            if depth < _MAX_DEPTH:
                found |= other_states(inner, known, f"{place}.", depth + 1, on_meta=on_meta)
        elif any(map(_is_weight, inner, inner.values())) and (
            on_meta or all(map(_is_plain, inner.values()))
        ):
            found[place] = without_counter(dict(inner))[0]
    return found


def _candidates(mapping: Mapping[Any, Any], prefix: str, depth: int = 0) -> dict[str, State]:
    if _is_state(mapping):
        return {prefix: dict(mapping)}
    found: dict[str, State] = {}
    if depth < 3:
        for key in (*CONTAINER_KEYS, *_PASSAGES):
            inner = _state_of(mapping.get(key))
            if isinstance(inner, Mapping):
                found |= _candidates(inner, f"{prefix}.{key}" if prefix else key, depth + 1)
    among = _weights_among(mapping)
    if among:
        inner = [*found.values(), *_inner_states(mapping)]
        if not inner or is_bare(among, inner):
            return {prefix: among} | found
    return found


def is_bare(among: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether tensors beside state dicts are one by their names: {**sd, "model": other}.

    A tensor such as `best` is none; one called as those of a module are, or in `others`, is.
    """
    names = {name for state in others for name in state}
    return any(_is_matrix(one) and ("." in key or key in names) for key, one in among.items())


def _state_of(value: Any) -> Any:
    return value.state_dict() if isinstance(value, nn.Module) else plain(value)


def _is_state(mapping: Mapping[Any, Any]) -> bool:
    return bool(mapping) and all(
        isinstance(key, str) and isinstance(value, (Tensor, LostTensor))
        for key, value in mapping.items()
    )


def _weights_among(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the weights in a dict that holds other things too; {} if it is no state dict."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        tensor = _weight(key, value)
        if tensor is not None and not isinstance(key, str):
            return {}
        if tensor is not None:
            found[key] = tensor
    # One number or vector (`best_acc1`, the mean of the data) makes no state dict.
    matrix = any(map(_is_matrix, found.values()))
    return found if matrix or any("." in key for key in found) else {}


def _is_matrix(value: object) -> bool:
    if isinstance(value, LostTensor):
        return not value.reason.endswith(NO_TENSOR)
    return isinstance(value, Tensor) and value.ndim > 1


def _weight(key: Any, value: Any) -> Tensor | LostTensor | None:
    """Return an entry of a dict as a weight, and None for what may be passed over.

    Entries that a layer needs are never passed over: an object in the place of a tensor, and the
    packed weights of quantized layers.
    """
    if isinstance(value, (Tensor, LostTensor)):
        return value
    below = isinstance(key, str) and "." in key
    if not below or key.endswith("._extra_state"):
        return None
    if isinstance(value, Inert):
        return as_tensor(value)
    packed = value if isinstance(value, tuple) else ()
    lost = any(
        isinstance(part, LostTensor) or (isinstance(part, Tensor) and part.is_quantized)
        for part in packed
    )
    return LostTensor("is quantized") if lost else None


def _inner_states(mapping: Mapping[Any, Any], depth: int = 2) -> Iterator[Mapping[str, Any]]:
    """Yield the state dicts in a dict that are not an optimizer's."""
    for key, value in mapping.items():
        if not isinstance(key, str) or any(part in key for part in (".", "_extra_state", "optim")):
            continue
        one = value if isinstance(value, Tensor) else _state_of(value)
        if isinstance(one, Mapping):
            if _is_state(one):
                yield one
            elif depth > 1:
                yield from _inner_states(one, depth - 1)


def _no_mapping(loaded: object, path: Path) -> tuple[str, str]:
    """Return the two sentences of the error for a file that does not hold a dict."""
    if is_array(loaded):
        what = f"{path}: holds a numpy array, not a state dict."
        return what, f"If these are data, save torch.as_tensor(array) for --data; else {_LEAVE_OUT}"
    if isinstance(loaded, Tensor):
        shape = list(loaded.shape)
        what = f"{path}: holds a Tensor of shape {shape}, not a state dict."
        return what, f"If these are data, pass them with --data; else {_LEAVE_OUT}"
    if isinstance(loaded, list) and loaded and all(isinstance(one, Mapping) for one in loaded):
        code = (
            f"import os, torch; os.makedirs({_CONVERTED!r}, exist_ok=True);"
            f" [torch.save(s, f'{_CONVERTED}/step_{{i}}.pt')"
            f" for i, s in enumerate(torch.load({str(path)!r}))]"
        )
        what = f"{path}: holds a list of {len(loaded)} dicts, not a state dict."
        return what, f"Save each in a file: {line_of_python(code)}, or {_LEAVE_OUT}"
    if isinstance(loaded, (Inert, type)):
        return f"{path}: holds a {name_of(loaded)}, not a state dict.", WITH_CODE
    kind = f"{path}: holds a {type(loaded).__name__}, not a state dict."
    return kind, f"{_SAVE}, or {_LEAVE_OUT}"


def _arrays(loaded: Mapping[Any, Any], path: Path) -> tuple[str, str] | None:
    """Return the two sentences of the error for a dict of numpy arrays."""
    for place in ("", *CONTAINER_KEYS):
        arrays = _state_of(loaded.get(place)) if place else loaded
        if isinstance(arrays, Mapping) and arrays and all(map(is_array, arrays.values())):
            inner = f"[{json.dumps(place)}]" if place else ""
            read = (
                "{k: torch.as_tensor(v) for k, v in"
                f" torch.load(f, weights_only=False){inner}.items()}}"
            )
            where = f" under {place!r}" if place else ""
            return (
                f"{path}: holds numpy arrays{where}, not tensors.",
                "Convert it if you trust whoever made it, since this runs its code:"
                f" {conversion(path, read)}, or {_LEAVE_OUT}",
            )
    return None


def _no_state(loaded: Mapping[Any, Any], path: Path) -> tuple[str, str]:
    """Return the two sentences of the error for a dict without a state dict."""
    keys = ", ".join(repr(printable_name(str(key))) for key in list(loaded)[:8])
    what = f"{path}: no state dict found; its keys are {keys or 'none'}."
    for place in (*CONTAINER_KEYS, *EMA_KEYS):
        if isinstance(loaded.get(place), Inert) and not is_array(loaded[place]):
            name = printable_name(name_of(loaded[place]))
            return f"{what[:-1]}, and {place!r} is a {name}.", WITH_CODE
    return what, (
        f"Weights must be at the top level or under {', '.join((*CONTAINER_KEYS, *EMA_KEYS))}; if"
        f" it is not a checkpoint, {_LEAVE_OUT}"
    )


def _oddity(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "is nested"
    if tensor.is_meta:
        return NO_VALUES
    return (
        ""
        if tensor.layout == torch.strided and not tensor.is_quantized
        else ("is sparse or quantized")
    )


def _has_values(tensor: Tensor | LostTensor) -> bool:
    if isinstance(tensor, LostTensor) or tensor.is_nested:
        return False
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _is_plain(tensor: Tensor | LostTensor) -> bool:
    """Return whether a tensor is dense and about as large as the file keeps it."""
    if isinstance(tensor, LostTensor) or not _has_values(tensor):
        return False
    return tensor.nbytes <= max(tensor.untyped_storage().nbytes(), MAX_REPEATED_BYTES)


def _check_plain(state: State, path: Path) -> None:
    for key, tensor in state.items():
        kind = tensor.reason if isinstance(tensor, LostTensor) else _oddity(tensor)
        if kind:
            name = printable_name(key)
            advice = WITH_CODE if kind.endswith(NO_MODULE) else _DENSE
            raise UnreadableError(f"{path}: {name} {printable_name(kind)}.", advice)
        claimed, held = tensor.nbytes, tensor.untyped_storage().nbytes()
        if not _is_plain(tensor):
            raise UnreadableError(
                f"{path}: {printable_name(key)} claims {claimed} bytes, but the file holds {held}"
                " for it.",
                f"Save it again, or {_LEAVE_OUT}",
            )
