"""Divides an analysis among processes, here or on a cluster, and puts the parts together."""
