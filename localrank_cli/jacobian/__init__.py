"""Jacobians of layers' pre-activations with respect to the varied tensor, exact."""
