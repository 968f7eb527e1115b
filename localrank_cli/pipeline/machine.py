"""What the machine has: devices, memory, versions."""

import contextlib
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from localrank_cli.errors import SettingsError

_FALLBACK_BYTES = 2 * 2**30
_NO_LIMIT = 2**60


def pick_device(name: str) -> torch.device:
    """Turns `--device` into a device.

    Args:
        name: auto, cpu, cuda or cuda:K.

    Returns:
        The device; `auto` is CUDA where there is a GPU.

    Raises:
        SettingsError: If that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise SettingsError(
                f"--device {name}: there is no such GPU ({count} found).",
                "Use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES.",
            )
    return device


def memory_budget(device: torch.device) -> int:
    """A quarter of what is free, in bytes.

    Args:
        device: Where the Jacobians are computed.

    Returns:
        The budget.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free // 4)
    return _free_memory() // 4


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes.

    Returns:
        The size.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on.

    Returns:
        Name -> version.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("localrank", "torch", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _free_memory() -> int:
    free = _NO_LIMIT
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        base = Path("/sys/fs/cgroup")
        # "max" is no number: no limit.
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int((base / limit).read_text()) - int((base / used).read_text()))
    return free if 0 < free < _NO_LIMIT else _FALLBACK_BYTES
