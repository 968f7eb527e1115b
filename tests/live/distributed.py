"""Trainings on two processes, one after another; run by `test_distributed.py`."""

import importlib
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from localrank_cli import Monitor
from localrank_cli.errors import LocalrankError

DATA = torch.rand(16, 4, generator=torch.Generator().manual_seed(1))
KINDS = ("none", "ddp", "fsdp", "fault", "raise")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(rank: int, folder: Path, kind: str) -> None:
    """Train, and save the weights of the end."""
    model = network()
    trained: Any = fully_shard(model) if kind == "fsdp" else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    chosen: dict[str, Any] = {"fsdp": {"model": network}, "fault": {"layers": "nothing"}}
    monitor = None
    if kind != "none":
        monitor = Monitor(
            folder / f"{kind}.csv", DATA, every=2, device="cpu", points=4, max_share=0.999,
            quiet=True, on_error="raise" if kind == "raise" else "warn", **chosen.get(kind, {}),
        )  # fmt: skip
    for step in range(5):
        if monitor is not None:
            given: Any = "no network" if kind == "raise" else trained
            monitor(given, step)
        optimizer.zero_grad()
        trained(DATA[rank::2]).square().sum().backward()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    if kind != "fsdp":
        torch.save(model.state_dict(), folder / f"{kind}_{rank}.pt")


def run(rank: int, folder: str) -> None:
    """Run all trainings as one process of two."""
    address = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for kind in KINDS:
        try:
            train(rank, Path(folder), kind)
        except LocalrankError as error:
            Path(folder, f"{kind}_{rank}.txt").write_text(str(error))
    dist.barrier()  # no process ends while another still needs it
    dist.destroy_process_group()


def main(folder: str) -> None:
    # Forked, as this process has no other threads: each would import torch for seconds, and this
    # with the first optimizer.
    importlib.import_module("torch._dynamo")
    start: Any = vars(mp)["start_processes"]  # not among torch's exported names
    start(run, args=(folder,), nprocs=2, start_method="fork")
