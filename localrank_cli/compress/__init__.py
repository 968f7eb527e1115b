"""Compress a network with low-rank factors, and measure the cost."""
