"""Series of checkpoints: which files, which steps, which tensors."""
