"""A network in memory, measured once or while it is trained, and left as it was."""
