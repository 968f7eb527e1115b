"""Which modules are layers, when they run, and what they output."""
