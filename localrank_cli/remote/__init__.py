"""Series of checkpoints on other machines, brought to this one a checkpoint at a time."""
