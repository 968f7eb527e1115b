"""The share of one machine that each of several workers gets: cores, memory, a GPU."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.options.table import LEAST_MEMORY

ALL = "all"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Machine:
    """The resources to divide."""

    cores: int
    memory: int  # bytes that all workers on the CPU may use together
    gpus: int


@dataclass(frozen=True)
class Share:
    """One worker's part of the machine."""

    device: str  # as for --device
    threads: int
    memory: int | None  # bytes; None: each takes a quarter of what is free on its GPU
    environment: Mapping[str, str]  # what differs from this process's


def is_several(device: str) -> bool:
    """Return whether `--device` is a list or `all`."""
    return device == ALL or "," in device


def available_cores(environment: Mapping[str, str]) -> int:
    """Return how many threads may run at once: the cores, limited by OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    first = environment.get(_THREADS, "").partition(",")[0]
    return max(1, min(int(first), cores or 1) if first.isdecimal() else cores or 1)


def divide(
    workers: int | None,
    device: str,
    memory: int | None,
    machine: Machine,
    environment: Mapping[str, str],
) -> list[Share]:
    """Divide a machine among workers; return a share for each.

    Args:
        workers: How many; None: one for each device, or for each core.
        device: `--device`: one, several with commas, all, or auto.
        memory: `--memory`: bytes for all workers on one device together; None: a quarter of the
            free memory.
        machine: The resources to divide.
        environment: Of this process.

    Raises:
        UsageError: If there is too little memory for so many workers.
        SettingsError: If a GPU is missing.
    """
    devices = _devices(device, machine)
    if workers is None:
        workers = machine.cores if devices == ["cpu"] else len(devices)
    shares = []
    for index in range(workers):
        place = devices[index % len(devices)]
        beside = len(range(index % len(devices), workers, len(devices)))  # on the same device
        threads = max(1, machine.cores // workers + (index < machine.cores % workers))
        whole = memory if memory is not None or place != "cpu" else machine.memory
        part = whole // beside if whole is not None else None
        if part is not None and part < LEAST_MEMORY:
            raise UsageError(
                f"--workers {workers}: {part // 2**20} MiB for each is too little.",
                "Give fewer workers or more --memory.",
            )
        differing = {_THREADS: str(threads), "MKL_NUM_THREADS": str(threads)}
        if place != "cpu":
            differing[_VISIBLE] = _visible(int(place.partition(":")[2]), environment)
        shares.append(Share("cpu" if place == "cpu" else "cuda", threads, part, differing))
    return shares


def _devices(device: str, machine: Machine) -> list[str]:
    every = [f"cuda:{index}" for index in range(machine.gpus)]
    if device == "auto":
        return every or ["cpu"]
    if device == ALL:
        if not every:
            raise SettingsError(
                "--device all: there is no GPU.",
                "Use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES.",
            )
        return every
    names: Sequence[str] = [name.strip() for name in device.split(",")]
    found = ["cuda:0" if name == "cuda" else name for name in names]
    for name in found:
        if name != "cpu" and name not in every:
            raise SettingsError(
                f"--device {device}: there is no {name} ({machine.gpus} GPUs found).",
                "Check the driver and CUDA_VISIBLE_DEVICES.",
            )
    return found


def _visible(index: int, environment: Mapping[str, str]) -> str:
    """Return a child's name of a GPU; the GPUs that this process sees may be a selection."""
    names = [name.strip() for name in environment.get(_VISIBLE, "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)
