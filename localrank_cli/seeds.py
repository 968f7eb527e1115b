"""Random number generators under a fixed seed, restored afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The user's code is imported and called under this seed: no number depends on the caller's seed.
SEED = 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and `random`, and restore their states at the end."""
    # Where CUDA is not in use yet, torch.manual_seed would seed it for good at its first use.
    devices = list(range(torch.cuda.device_count())) if _uses_cuda() else []
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            if devices:
                torch.cuda.manual_seed_all(seed)
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())
