"""The points at which Jacobians are taken."""
