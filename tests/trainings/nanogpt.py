"""What nanoGPT's train.py does: a memory-mapped stream of tokens, and one out/ckpt.pt."""

from pathlib import Path

import numpy as np
import torch
from model import GPT, GPTConfig

if __name__ == "__main__":
    torch.manual_seed(0)
    Path("data/shakespeare_char").mkdir(parents=True)
    stream = np.random.default_rng(0).integers(30, size=4000).astype(np.uint16)
    stream.tofile("data/shakespeare_char/train.bin")
    model_args = {
        "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "bias": False,
        "vocab_size": 30, "dropout": 0.0,
    }  # fmt: skip
    raw = GPT(GPTConfig(**model_args))
    model = torch.compile(raw)  # never called: its state dict alone is what differs
    optimizer = torch.optim.AdamW(raw.parameters(), lr=1e-2)
    data = np.memmap("data/shakespeare_char/train.bin", dtype=np.uint16, mode="r")
    for iter_num in range(251):
        if iter_num == 250:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "model_args": model_args,
                "iter_num": iter_num,
                "best_val_loss": torch.tensor(1e9),
                "config": {"out_dir": "out", "dataset": "shakespeare_char", "compile": True},
            }
            Path("out").mkdir()
            torch.save(checkpoint, "out/ckpt.pt")
        starts = torch.randint(len(data) - 8, (4,))
        rows = torch.stack([torch.from_numpy(data[i : i + 9].astype(np.int64)) for i in starts])
        optimizer.zero_grad()
        raw(rows[:, :-1], rows[:, 1:])[1].backward()
        optimizer.step()
