"""The points at which Jacobians are computed."""
