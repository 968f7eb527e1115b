"""Differences between groups of runs with intervals, and the step at which ranks fall."""
