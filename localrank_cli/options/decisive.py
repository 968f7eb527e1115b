"""The settings that decide the numbers, which must be equal for two analyses to be one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localrank_cli.errors import shortened
from localrank_cli.measures.table import FIRST, choice_of
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions

# Settings of the manifest that no option decides alone, and those that options decide. The location
# of files is not among them.
DECISIVE = tuple(
    dict.fromkeys(
        (
            "definitions",
            *(key for option in options_of(AnalyzeOptions) for key in option.setting.decides),
            "measures",
            "columns",
            "optional_columns",
        )
    )
)

# The values that code returned are compared if both analyses recorded them: the first release did
# not.
_VALUES = "data_values_sha256"
# Recorded since float64 answers requests for float32. It need not be equal: rows of both kinds may
# be mixed where none of those before is in float32.
PRECISION = "precision"

# Names in messages, where the setting's own name would not be clear.
_NAMES = {
    "point_indices": "points",
    "data_sha256": "content of the data",
    _VALUES: "the return value of the code of --data",
    "n_data": "data",
    "counting": "the unit of the steps",
    "step_from": "--step-from",
    "step_regex": "--step-regex (or --step-pattern)",
    "beside": "--beside",
    "unsaved": "the list of parts that no checkpoint holds (--allow-unsaved)",
}


# Settings that may differ between runs whose mean is drawn: those of the seed, those that the
# figure chooses, and those that the table shows.
_MAY_DIFFER = {
    "seed", "point_indices", "information_point_indices", "tolerances", "measures", "columns",
    "optional_columns", "layers", "wrt", "positions", "residual", "input_metric", "dtype", "n_cov",
    "slices", "beside", "step_from", "step_regex",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """The first setting in which two analyses differ."""

    key: str
    earlier: Any
    now: Any

    @property
    def _is_choice(self) -> bool:
        """Whether two values of `--measures` differ, and not two versions of localrank."""
        if self.key != "measures":
            return False
        choices = {choice_of(self.earlier), choice_of(self.now)}
        return len(choices) == 2 and None not in choices

    @property
    def _is_version(self) -> bool:
        return self.key == "measures" and not self._is_choice

    @property
    def name(self) -> str:
        """The name of the setting in a sentence."""
        if self.key == "measures":
            if self._is_choice:
                return "--measures"
            differ = sorted(set(self.earlier) ^ set(self.now))
            return f"the measures {', '.join(differ)}"
        return _NAMES.get(self.key, self.key.replace("_", " "))

    @property
    def sentence(self) -> str:
        """The difference as a clause, such as `noise was 1.0 and is now 2.0`."""
        if self._is_version:
            return f"it was written by another version of localrank, which differs in {self.name}"
        earlier, now = self._texts
        return f"{self.name} was {earlier} and is now {now}"

    @property
    def between(self) -> str:
        """The difference as a clause on two tables, such as `noise is 2.0 and 1.0`."""
        if self._is_version:
            return f"they were written by versions of localrank that differ in {self.name}"
        earlier, now = self._texts
        return f"{self.name} is {now} and {earlier}"

    @property
    def _texts(self) -> tuple[str, str]:
        earlier, now = self.earlier, self.now
        if self._is_choice:
            earlier, now = choice_of(earlier), choice_of(now)
        elif self.key == "layers" and earlier is not None and now is not None:
            earlier, now = _layers_that_differ(earlier, now)
        return shortened(earlier), shortened(now)

    @property
    def advice(self) -> str:
        """How to remove the difference itself, followed by a space; empty if there is no way."""
        if self.key != _VALUES:
            return ""
        return (
            "The code draws different values at every start. Seed its generator inside the function"
            " (numpy.random.default_rng(0), torch.Generator().manual_seed(0)). "
        )


def _layers_that_differ(
    earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """Return the layers that only one of two analyses has, or all if only their order differs."""
    before, after = ([_layer_text(one) for one in layers] for layers in (earlier, now))
    removed = [text for text in before if text not in after]
    added = [text for text in after if text not in before]
    if removed and added:
        return ", ".join(removed), ", ".join(added)
    lone = ", ".join(removed or added)
    if not lone:
        return ", ".join(before), ", ".join(after)
    words = ("with", "without") if removed else ("without", "with")
    return f"{words[0]} {lone}", f"{words[1]} {lone}"


def _layer_text(layer: Mapping[str, Any]) -> str:
    number = layer.get("number", 1)
    name = str(layer["name"]) + (f"#{number}" if number > 1 else "")
    source = f" from {layer['wrt'] or 'the input'}" if "wrt" in layer else ""
    shape = " x ".join(map(str, layer.get("shape", ())))
    return f"{name}{source}" + (f" ({shape})" if shape else "")


def find_difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return the first setting of a series that decides numbers and differs, or None."""
    before, after = decisive(earlier), decisive(json.loads(json.dumps(now)))
    # Other options may decide which layers there are; they say more.
    for key in sorted(before, key=lambda one: one == "layers"):
        value = before[key]
        if key == _VALUES and None in {value, after[key]}:
            continue
        if value != after[key]:
            return Difference(key, value, after[key])
    return None


def combine(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that hold for the rows of two analyses between which there is no difference.

    A precision is claimed only if both have it. What the code of `--data` returned is taken from
    either, so that a third analysis is compared with it.
    """
    combined = dict(earlier)
    if earlier.get(PRECISION) != now.get(PRECISION):
        combined[PRECISION] = None
    if earlier.get(_VALUES) is None and now.get(_VALUES) is not None:
        combined[_VALUES] = now[_VALUES]
    return combined


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must be equal; files are compared by content, not by path."""
    found = {key: settings.get(key) for key in DECISIVE}
    found["measures"] = sorted(found["measures"] or FIRST)
    found["unsaved"] = found["unsaved"] or []  # earlier versions did not write it
    if found["data_sha256"] is not None:
        found["data"] = str(found["data"]).rpartition(":")[2] if ":" in str(found["data"]) else None
    if found["model_sha256"] is not None:
        found["model"] = str(found["model"]).rpartition(":")[2]
    return found


def what_differs(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings of a run without which two runs are seeds of one, by their names."""
    found = {key: value for key, value in decisive(settings).items() if key not in _MAY_DIFFER}
    named = {key: Difference(key, None, None).name for key in found}
    named |= {"n_data": "size of the data", "model_sha256": "code of the model"}
    assert len(set(named.values())) == len(named)
    # Earlier versions did not record the values that code returned.
    return {named[key]: value for key, value in found.items() if (key, value) != (_VALUES, None)}
