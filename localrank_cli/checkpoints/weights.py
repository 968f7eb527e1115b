"""`--weights`: which of several state dicts in a file is read, and which prefixes its keys lose."""

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, cast

from localrank_cli.errors import SettingsError

RAW, EMA = "raw", "ema"
_Value = TypeVar("_Value")
_Fits: TypeAlias = Callable[[Mapping[str, _Value]], bool]
WRAPPERS = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPERS, "model.", "net.")
# Of torch.compile, FSDP (old and new), activation checkpointing, Lightning's strategies and Opacus:
# no network of its own has parts of these names.
_PRIVATE_WRAPPERS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_fpw_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",
    "_module.",
)
_ALL_WRAPPERS = (*_PRIVATE_WRAPPERS, "module.")  # and of DataParallel
_NORMS = {"original0": "_g", "original1": "_v"}  # of weight_norm, new and old
# Top-level parts of a training's module that are not the network.
_LOSS = re.compile(
    r"^(?:\w*loss(?:es|_\w+)?|criteri(?:on|a)\w*|\w*metrics?|\w*_acc(?:uracy)?|"
    r"(?:arc|cos|sphere)_?face\w*|\w*margin\w*)\.",
    flags=re.IGNORECASE,
)
# Tensors that training keeps beside the weights, and what TransformerEngine adds to each layer.
_BESIDE = re.compile(
    r"^(?:(?:(?:global|n|num|total|current|best)_)?(?:steps?|epochs?|iter(?:ation)?s?|loss|lr|"
    r"acc(?:uracy)?\d?|metric|score)|(?:\w+_)?(?:loss(?:es)?|rng(?:_states?)?)|_extra_state)$"
    r"|\._extra_state$",
    flags=re.IGNORECASE,
)
_SECOND = re.compile(
    r"^(?:(?:model_)?ema\w*|swa_\w+|\w*teacher|\w*discriminator|net_?d|critic|target_\w+|momentum_\w+)\.",
    flags=re.IGNORECASE,
)
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:$|[._])", re.IGNORECASE)


def choose(content: "Sets", weights: str, place: str) -> tuple[str, ...]:
    """Return the keys of the state dicts that `--weights` allows, in the order to try them.

    Args:
        content: The sets of weights in a file.
        weights: `raw` for the weights that training continues with, `ema` for an average, or a key.
            Where a file holds nothing but an average, `raw` is that.
        place: The file, for messages.

    Raises:
        SettingsError: If there are no such weights.
    """
    keys, averaged = content.keys, content.averaged
    if weights == RAW:
        known = tuple(key for key in keys if key not in averaged and key not in content.others)
        # Keys that no framework uses come before an average, and are tried after all others.
        return known or tuple(key for key in keys if key not in averaged) or tuple(keys)
    if weights == EMA:
        chosen = tuple(key for key in keys if key in averaged)
        missing = "no average of weights was found in it"
    else:
        chosen = tuple(key for key in keys if key == weights)
        missing = "it has no such weights"
    if not chosen:
        there = ", ".join(describe_weights(key, averaged) for key in keys)
        named = ["raw", *(["ema"] if set(averaged) & set(keys) else []), "one of these keys"]
        raise SettingsError(
            f"{place}: --weights {weights}: {missing}; it holds {there}.",
            f"Give --weights {', '.join(named)}, or a prefix of its names, such as ema_model;"
            f" localrank inspect {shlex.quote(place)} lists them.",
        )
    return chosen


def describe_weights(key: str, averaged: Collection[str]) -> str:
    """Return a set of weights for messages: its key, and whether it is an average."""
    return (repr(key) if key else "a bare state dict") + (" (ema)" if key in averaged else "")


@dataclass(frozen=True)
class Sets:
    """The sets of weights in a file, by key."""

    keys: tuple[str, ...]
    averaged: Collection[str] = ()  # those that hold an average over training
    others: Collection[str] = ()  # those at keys that no framework uses


def part_at(states: Mapping[str, Mapping[str, _Value]], place: str) -> dict[str, _Value] | None:
    """Return the entries under a prefix of names, such as `student` or `state_dict.student`.

    The names in the result lack the prefix. Where no name has it, the end of the place of a single
    state dict counts: `ema_model` for `ema.ema_model`. Else None.
    """
    for key, state in states.items():
        for prefix in (f"{place}.", f"{place}.".removeprefix(f"{key}.") if key else ""):
            found = {
                name[len(prefix) :]: value
                for name, value in state.items()
                if prefix and name.startswith(prefix)
            }
            if found:
                return found
    for state in states.values():
        bare = {_without_wrappers(name): value for name, value in state.items()}
        found = {
            name[len(place) + 1 :]: value
            for name, value in bare.items()
            if name.startswith(f"{place}.")
        }
        if found and len(bare) == len(state):
            return found
    # Last: of `student.` in the weights and `ema.student`, the first is meant.
    ends = [state for key, state in states.items() if key.endswith(f".{place}")]
    return dict(ends[0]) if len(ends) == 1 else None


def parts(state: Mapping[str, _Value]) -> dict[str, dict[str, _Value]]:
    """Return the entries under each prefix of up to three parts, without the prefix."""
    found: dict[str, dict[str, _Value]] = {}
    for name, value in state.items():
        split = name.split(".")
        for length in range(1, min(4, len(split))):
            rest = ".".join(split[length:])
            found.setdefault(".".join(split[:length]), {})[rest] = value
    return found


def without_loss(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the entries that are not a loss's, a metric's or the training's by their names."""
    return {
        key: value for key, value in state.items() if not (_LOSS.match(key) or _BESIDE.search(key))
    }


def second_networks(
    state: Mapping[str, _Value],
) -> tuple[dict[str, _Value], dict[str, dict[str, _Value]]]:
    """Return the entries that are not a second network's by their names, and those by prefix."""
    rest: dict[str, _Value] = {}
    others: dict[str, dict[str, _Value]] = {}
    for key, value in state.items():
        if _SECOND.match(key):
            prefix, _, name = key.partition(".")
            others.setdefault(prefix, {})[name] = value
        else:
            rest[key] = value
    return rest, others


@dataclass(frozen=True)
class Stripping:
    """What was removed from keys to give the names of the model."""

    prefix: str = ""  # from the front of every key
    inner: bool = False  # `_orig_mod.` and `module.` inside the keys too
    masked: bool = False  # `_orig` and `_mask` of pruning, as in `without_masks`
    # The key and the model's name of each entry, where this is not a matter of prefixes alone.
    names: tuple[tuple[str, str], ...] = ()
    change: str = ""  # what `names` change, for notes
    left: tuple[str, ...] = ()  # keys of entries that are not the network's

    def apply(self, state: Mapping[str, _Value]) -> dict[str, _Value] | None:
        """Return a state by the names of the model; None where it is another state."""
        if not self.names:
            return next((found for one, found in candidates(state) if one == self), None)
        if self.masked:
            state = without_masks(state) or state
        if state.keys() != {key for key, _ in self.names} | set(self.left):
            return None
        return {name: state[key] for key, name in self.names}

    @property
    def description(self) -> str:
        """What was removed, for notes; empty if nothing was."""
        found = [f"prefix {self.prefix!r}"] if self.prefix else []
        if self.inner:
            found.append("inner '_orig_mod.' and 'module.'")
        return " and ".join([*found, self.change] if self.change else found)


def candidates(
    state: Mapping[str, _Value], prefixes: tuple[str, ...] = PREFIXES
) -> list[tuple[Stripping, dict[str, _Value]]]:
    """Return all ways to remove wrappers' prefixes from the keys of a state, the fewest first.

    Those that apply the masks of pruning are last.
    """
    found = _unwrapped(state, prefixes)
    pruned = without_masks(state)
    if pruned is not None:
        found += [(replace(one, masked=True), rest) for one, rest in _unwrapped(pruned, prefixes)]
    return found


def _unwrapped(
    state: Mapping[str, _Value], prefixes: tuple[str, ...]
) -> list[tuple[Stripping, dict[str, _Value]]]:
    found: list[tuple[Stripping, dict[str, _Value]]] = []
    current, removed = dict(state), ""
    while True:
        found.append((Stripping(removed), current))
        inner = _without_inner(current)
        if inner is not None:
            found.append((Stripping(removed, inner=True), inner))
        prefix = next(
            (p for p in prefixes if current and all(k.startswith(p) for k in current)), ""
        )
        if not prefix:
            return found
        current = {key[len(prefix) :]: value for key, value in current.items()}
        removed += prefix


def strip_to_fit(
    state: Mapping[str, _Value], fits: Callable[[Mapping[str, _Value]], bool]
) -> tuple[Stripping, dict[str, _Value]] | None:
    """Return the state with as few prefixes removed as make it fit, or None when nothing fits."""
    return next((pair for pair in candidates(state) if fits(pair[1])), None)


def without_masks(state: Mapping[str, _Value]) -> dict[str, _Value] | None:
    """Return a state with the weights that torch.nn.utils.prune masks; None if it masks none.

    `weight_orig` and `weight_mask` of one shape become `weight`: of tensors, their product.
    """
    pruned = {
        key.removesuffix("_orig"): key
        for key, value in state.items()
        if key.endswith("_orig")
        and (name := key.removesuffix("_orig")) not in state
        and _shape(state.get(f"{name}_mask")) == _shape(value)
        and f"{name}_mask" in state
    }
    if not pruned:
        return None
    masks = {f"{name}_mask" for name in pruned}
    kept = {key: value for key, value in state.items() if key not in masks}
    names = {key: name for name, key in pruned.items()}
    found = {names.get(key, key): value for key, value in kept.items()}
    return {
        name: _product(value, state[f"{name}_mask"]) if name in pruned else value
        for name, value in found.items()
    }


def _product(value: _Value, mask: _Value) -> _Value:
    """Return a masked tensor; a shape or a dtype stays as it is."""
    # Without torch's classes: completion, which must be quick, imports this file.
    return cast("_Value", cast("Any", value) * mask) if hasattr(value, "shape") else value


def _shape(value: object) -> object:
    """Return what two entries of one shape share: a tensor or a shape may be given, or a dtype."""
    return getattr(value, "shape", value if isinstance(value, tuple) else None)


def without_wrappers(state: Mapping[str, _Value]) -> Mapping[str, _Value]:
    """Return a state by the names that the network has without wrappers, as far as that is clear.

    `module.` may also be a part of a network; it is removed where it begins every name. Masks of
    pruning are applied.
    """
    state = without_masks(state) or state
    shorter = {
        ".".join(part for part in name.split(".") if f"{part}." not in _PRIVATE_WRAPPERS): value
        for name, value in state.items()
    }
    *_, (_, bare) = candidates(shorter if len(shorter) == len(state) else state, WRAPPERS)
    return bare


def match_names(
    state: Mapping[str, _Value], names: Collection[str], fits: _Fits[_Value]
) -> Stripping | None:
    """Return how names that differ in their wrappers, anywhere in them, become the model's.

    Wrappers (`_orig_mod`, `_fsdp_wrapped_module`, ...) are removed where the model has none and
    added where it has; `weight_g` and `weight_v` of the old weight_norm count as `original0` and
    `original1` of the new one. Never where two keys would become one. Masks of pruning are applied
    where the model has none.

    Args:
        state: The entries of a file.
        names: Those of the model's state dict.
        fits: Whether entries are those of the model.
    """
    found = _match_names(state, names, fits)
    pruned = without_masks(state) if found is None else None
    if pruned is not None:
        found = _match_names(pruned, names, fits)
        return None if found is None else replace(found, masked=True)
    return found


def _match_names(
    state: Mapping[str, _Value], names: Collection[str], fits: _Fits[_Value]
) -> Stripping | None:
    of_model = {plain_name(name): name for name in names}
    if len(of_model) < len(names):
        return None
    for stripping, stripped in candidates(state):
        plain = {plain_name(name): name for name in stripped}
        if stripping.inner or stripping.masked or len(plain) < len(stripped):
            continue
        renamed = {of_model.get(short, name): name for short, name in plain.items()}
        if len(renamed) == len(stripped) and fits({k: stripped[n] for k, n in renamed.items()}):
            pairs = tuple((stripping.prefix + name, new) for new, name in renamed.items())
            return Stripping(names=pairs, change=_change(pairs))
    return None


def plain_name(name: str) -> str:
    """Return a parameter's name without wrappers, and with the old names of weight_norm."""
    found = _without_wrappers(name).split(".")
    if len(found) > 2 and found[-3] == "parametrizations" and found[-1] in _NORMS:
        found[-3:] = [found[-2] + _NORMS[found[-1]]]
    return ".".join(found)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if f"{part}." not in _ALL_WRAPPERS)


def _change(pairs: Sequence[tuple[str, str]]) -> str:
    key, name = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return f"wrappers ({key} fills {name})" if key else ""


def find_part(
    state: Mapping[str, _Value], names: Collection[str], fits: _Fits[_Value]
) -> dict[str, Stripping]:
    """Return the prefixes under which some of the entries are the model's, exactly, and how.

    The key is "" where the network has no prefix beside the weights of a loss (`criterion.weight`).
    A longer prefix is left out if its entries are among those of a shorter one, as those of a base
    model in a network of transformers are. None is returned if entries of the network's own names
    fit, beside others that no prefix explains: no part is meant then. Masks of pruning are applied
    to the parts that fit with them alone.
    """
    found = _find_part(state, names, fits)
    pruned = without_masks(state)
    if pruned is None:
        return found
    masked = _find_part(pruned, names, fits)
    return found | {
        prefix: replace(part, masked=True) for prefix, part in masked.items() if prefix not in found
    }


def _find_part(
    state: Mapping[str, _Value], names: Collection[str], fits: _Fits[_Value]
) -> dict[str, Stripping]:
    found = _find_bare_part(state, names, fits)
    if "" in found:
        return found
    # The network itself beside others, all in wrappers (`module.0.weight`, `module.ema_model.*`).
    for wrapped, bare in _unwrapped(state, PREFIXES):
        outer = wrapped.prefix
        own = _find_bare_part(bare, names, fits).get("") if outer and not wrapped.inner else None
        if own is not None:
            pairs = tuple((outer + key, name) for key, name in own.names)
            left = tuple(outer + key for key in own.left)
            return {"": Stripping(names=pairs, change=f"prefix {outer!r}", left=left)} | found
    return found


def _find_bare_part(
    state: Mapping[str, _Value], names: Collection[str], fits: _Fits[_Value]
) -> dict[str, Stripping]:
    found: dict[str, Stripping] = {}
    seen: set[frozenset[str]] = set()
    rest = {key: value for key, value in without_loss(state).items() if not _SECOND.match(key)}
    groups = {"": rest} if 0 < len(rest) < len(state) else {}
    for prefix, part in (groups | parts(state)).items():
        if 2 * len(part) < len(names):  # tied names may be missing
            continue
        start = f"{prefix}." if prefix else ""
        keys = frozenset(start + name for name in part)
        if any(keys <= other for other in seen):
            continue
        fit = next((rest for _, rest in _unwrapped(part, PREFIXES) if fits(rest)), None)
        if fit is not None:
            given = dict(zip(fit, part, strict=True))
            pairs = tuple((start + name, new) for new, name in given.items())
        else:
            matched = _match_names(part, names, fits)
            if matched is None:
                continue
            pairs = tuple((start + name, new) for name, new in matched.names)
        seen.add(keys)
        left = tuple(key for key in state if key not in keys)
        change = f"prefix {start!r}" if start else ""
        found[prefix] = Stripping(names=pairs, change=change, left=left)
    own = {name: state[name] for name in names if name in state}
    if "" in found or not fits(own):
        return found
    # Those of a loss or a second network by their names, in no part that the network has too.
    tops = {name.partition(".")[0] for name in own}
    named = {
        key
        for key in state.keys() - rest.keys()
        if _BESIDE.search(key) or key.partition(".")[0] not in tops
    }
    if own.keys() | named | frozenset().union(*seen) < state.keys() or not (found or named):
        return {}
    left = tuple(key for key in state if key not in own)
    return {"": Stripping(names=tuple((name, name) for name in own), left=left)} | found


def prefer(places: Collection[str], *, averages: bool = False) -> list[str]:
    """Return which of several sets of weights that fit may be meant without a key.

    A whole bare state dict comes first. Names of averages (`ema_model`) come last, or first if
    `averages` are wanted.
    """
    if "" in places:
        return [""]
    wanted = [place for place in places if is_average(place) is averages]
    return wanted or list(places)


def is_average(place: str) -> bool:
    """Return whether a place of weights is called an average: `ema.shadow`, `generator_ema`."""
    return _AVERAGE.search(place) is not None


def _without_inner(state: Mapping[str, _Value]) -> dict[str, _Value] | None:
    marks = {prefix.rstrip(".") for prefix in WRAPPERS}
    renamed = {}
    for key, value in state.items():
        first, *rest = key.split(".")  # a first part is removed from every key or from none
        renamed[".".join([first, *(part for part in rest if part not in marks)])] = value
    changed = set(renamed) != set(state)
    return renamed if changed and len(renamed) == len(state) else None
