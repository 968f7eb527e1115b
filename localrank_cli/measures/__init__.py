"""Measures of a spectrum: ranks at tolerances, soft ranks, norms, information."""
