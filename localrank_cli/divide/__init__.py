"""Divide an analysis among processes, here or on a cluster, and merge the parts."""
