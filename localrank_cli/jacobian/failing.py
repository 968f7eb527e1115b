"""What a user's model may raise under autograd, as errors that say what to do."""

from collections.abc import Callable
from typing import TypeVar

import torch

from localrank_cli.errors import LocalrankError, ModelError, one_line

_Result = TypeVar("_Result")


def guarded(compute: Callable[[], _Result]) -> _Result:
    """Computes.

    Args:
        compute: May run the user's model.

    Returns:
        Its result.

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
            "Leave the layers behind the failing operation out (--exclude), or see --debug.",
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Tells whether memory was short.

    Args:
        error: From torch, or Python's own.

    Returns:
        True when it was.
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def memory_error(error: Exception) -> ModelError:
    """Words an error of memory.

    Args:
        error: As raised.

    Returns:
        The error to raise in its place.
    """
    return ModelError(
        f"out of memory: {one_line(error)}",
        "Ask for fewer --points or --layers, or use a machine with more memory.",
    )
