"""Failures of a user's model under autograd, as errors with advice."""

from collections.abc import Callable
from typing import TypeVar

import torch

from localrank_cli.errors import LocalrankError, ModelError, one_line

_Result = TypeVar("_Result")


def attempt(compute: Callable[[], _Result]) -> _Result:
    """Return the result of a computation that may run the user's model.

    Raises:
        ModelError: If it fails, out of memory or otherwise.
    """
    try:
        return compute()
    except (LocalrankError, StopIteration):
        raise
    except Exception as error:  # whatever a user's model may raise under autograd
        if out_of_memory(error):
            raise memory_error(error) from error
        raise ModelError(
            f"the model cannot be differentiated: {type(error).__name__}: {one_line(error)}",
            "Leave out the layers behind the failing operation (--exclude), or see --debug.",
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch or Python means that memory was short."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def memory_error(error: Exception) -> ModelError:
    """Return the error to raise in place of one that means that memory was short."""
    return ModelError(
        f"out of memory: {one_line(error)}",
        "Ask for fewer --points or --layers, or use a machine with more memory.",
    )
