"""Real folders of torch.distributed.checkpoint, in one process."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_saver import save


class Splitting(DefaultSavePlanner):
    """Saves every tensor in parts along its first axis, as ranks that shard it do."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items: list[WriteItem] = []
        for item in plan.items:
            data = item.tensor_data
            if data is None or not data.size or data.size[0] < 2:
                items.append(item)
                continue
            lengths = [len(part) for part in torch.arange(data.size[0]).tensor_split(self.parts)]
            start = 0
            for length in filter(None, lengths):
                offsets = torch.Size((start, *(0 for _ in data.size[1:])))
                chunk = ChunkStorageMetadata(offsets, torch.Size((length, *data.size[1:])))
                index = MetadataIndex(item.index.fqn, offsets)
                part = TensorWriteData(chunk, data.properties, data.size)
                items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=part))
                start += length
        self.plan = SavePlan(items, planner_data=plan.planner_data)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type != WriteItemType.SHARD:
            return super().resolve_data(write_item)
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        whole = self.state_dict[write_item.index.fqn]
        return whole.narrow(0, chunk.offsets[0], chunk.sizes[0]).clone()


def save_dcp(folder: Path, state: dict[str, Any], parts: int = 1, flat: bool = True) -> None:
    """Saves with torch's own writer; in parts: several pieces of a tensor in several files."""
    folder.mkdir(parents=True)
    planner = Splitting(parts) if parts > 1 else DefaultSavePlanner(flatten_state_dict=flat)
    writer = FileSystemWriter(folder, single_file_per_rank=parts == 1, thread_count=parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations, and that there is one process
        save(state, storage_writer=writer, planner=planner, no_dist=True)
