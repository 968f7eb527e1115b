"""Fine-tune a small GPT-2 with the Trainer of transformers."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

SIZES = {"vocab_size": 40, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}

if __name__ == "__main__":
    torch.manual_seed(0)
    tokens = torch.randint(40, (60, 4))
    torch.save(tokens, "tokens.pt")
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))
    arguments = TrainingArguments(
        "output_dir", max_steps=1000, save_steps=500, per_device_train_batch_size=4,
        learning_rate=1e-3, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
