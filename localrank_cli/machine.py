"""Devices, memory and library versions of the machine."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from localrank_cli.errors import SettingsError, readable

_FALLBACK_BYTES = 2 * 2**30  # where the system does not show its free memory
_NO_LIMIT = 2**60  # control groups without a limit show a number of this order
# Of the GNU C library's mallopt, and the variables by which a user sets the same.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
# The largest that every version of mallopt takes; what is larger is given back when it is freed.
_LARGE = 32 * 2**20
_MOST_KEPT = 256 * 2**20


def pick_device(name: str) -> torch.device:
    """Return the device for `--device` (auto, cpu, cuda or cuda:K); `auto` prefers a GPU.

    Raises:
        SettingsError: If that device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "all" or "," in name:
        raise SettingsError(
            f"--device {name}: this is one process, on one device.",
            "To use several devices, run localrank analyze or submit on the command line: they"
            " start one process for each.",
        )
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = count_gpus()
        if int(index or 0) >= count:
            raise SettingsError(
                f"--device {name}: there is no such GPU ({count} found).",
                "Use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES.",
            )
    return torch.device(name)


def count_gpus() -> int:
    """Return how many GPUs this process may use; 0 without a driver."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def memory_budget(device: torch.device) -> int:
    """Return a quarter of the memory that is free on a device, in bytes."""
    return free_memory(device) // 4


def free_memory(device: torch.device) -> int:
    """Return the memory that is free on a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _free_memory()


def check_memory(wanted: int | None, device: torch.device) -> None:
    """Check that a device has as much memory as `--memory` gives; None gives none.

    Raises:
        SettingsError: If it has less, within the limits of the control group and of Slurm.
    """
    if wanted is None:
        return
    total = _total_memory(device)
    if total is not None and wanted > total:
        where = (
            str(device) if device.type == "cuda" else "this machine, within the limits of the job,"
        )
        raise SettingsError(
            f"--memory {readable(wanted)}: {where} has {readable(total)}, of which"
            f" {readable(free_memory(device))} is free.",
            "Give at most what is free, or leave it out for a quarter of that.",
        )


def keep_freed_memory(memory: int) -> None:
    """Let the C library keep some memory that is freed, at most an eighth of a budget of bytes.

    By default it gives all but 64 MiB back to the system, and has every page that it takes again
    filled with zeros: a fifth of the processor seconds of GPT-2 block to block on a busy machine.
    Nothing changes where the user set this, or with another C library.
    """
    if any(name in os.environ for name in _MALLOC) or sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, min(memory // 8, _MOST_KEPT))


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("localrank", "torch", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):  # a checkout that is not installed
            found[name] = _version(name)
    return found


_version = cache(version)  # which reads a file of the package each time


def _free_memory() -> int:
    left = [limit - used for limit, used in _control_group_memory()]
    slurm = [size - peak_memory() for size in _slurm_memory()]
    free = min([_of_system("MemAvailable:"), *left, *slurm])
    return free if 0 < free < _NO_LIMIT else _FALLBACK_BYTES


def _total_memory(device: torch.device) -> int | None:
    """Return the memory of a device in bytes, within the limits; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limits = [limit for limit, _ in _control_group_memory()]
    total = min([_of_system("MemTotal:"), *limits, *_slurm_memory()])
    return total if 0 < total < _NO_LIMIT else None


def _of_system(name: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux: it is not known
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return _NO_LIMIT


def _control_group_memory() -> list[tuple[int, int]]:
    """Return limits of this process's control group and its parents, and what is used of each."""
    base = Path("/sys/fs/cgroup")
    folders = [base, base / "memory"]
    with contextlib.suppress(OSError):  # not Linux: there are no control groups
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                group = (base if number == "0" else base / "memory") / path.lstrip("/")
                folders += [group, *(up for up in group.parents if up.is_relative_to(base))]
    found = []
    for folder in folders:
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            # "max" is not a number and means no limit.
            with contextlib.suppress(OSError, ValueError):
                found.append((int((folder / limit).read_text()), int((folder / used).read_text())))
    return found


def _slurm_memory() -> list[int]:
    """Return what Slurm allotted to the job (in MiB there), in bytes."""
    sizes = []
    with contextlib.suppress(KeyError, ValueError):  # not set outside of Slurm
        sizes.append(int(os.environ["SLURM_MEM_PER_NODE"]))
    with contextlib.suppress(KeyError, ValueError):  # not set outside of Slurm
        cores = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
        sizes.append(int(os.environ["SLURM_MEM_PER_CPU"]) * cores)
    # In Slurm 0 means all the memory of the node.
    return [size * 2**20 for size in sizes if size > 0]
