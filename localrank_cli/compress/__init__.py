"""Compress a network by factors of low rank, and measure what that costs."""
