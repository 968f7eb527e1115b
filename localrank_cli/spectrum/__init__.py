"""Singular values of layer Jacobians."""
