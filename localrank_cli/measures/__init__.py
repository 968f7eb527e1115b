"""What a spectrum says: ranks at tolerances, soft ranks, norms, information."""
