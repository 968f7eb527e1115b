"""How to turn other data into one array; without torch, since options are read without it."""

from collections.abc import Mapping, Sequence

_INPUTS = "torch.stack([inputs for inputs, *_ in data])"


def advice_of_array(value: object, verb: str = "Pass") -> str:
    """Return the advice that makes an array of data that are none; `verb` is what to do with it."""
    advice = f"{verb} one array with the points on its first axis."
    if isinstance(value, Mapping):
        advice = f"{verb} a dict of arrays, each with the points on its first axis."
    elif hasattr(value, "dataset"):  # a DataLoader
        advice = f"{verb} its inputs in one array: torch.cat([inputs for inputs, *_ in loader])."
    elif hasattr(value, "to_numpy"):  # a DataFrame
        advice = f"{verb} its numbers: data.to_numpy()."
    elif isinstance(value, Sequence):
        shapes = {tuple(getattr(one, "shape", ())) for one in value}
        advice = "Join the points along a new first axis: torch.stack(data)."
        if value and all(isinstance(one, (list, tuple)) and one for one in value):
            advice = f"If these are pairs of inputs and labels, join the inputs alone: {_INPUTS}."
        elif len(shapes) > 1:
            verb = verb.lower()
            advice = f"If these are inputs and labels, {verb} the inputs alone: data[0]."
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__"):  # a Dataset
        advice = f"{verb} its inputs in one array: {_INPUTS}."
    return advice
