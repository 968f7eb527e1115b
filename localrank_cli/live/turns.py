"""One analysis at a time in a process."""

import threading

# Torch's default dtype and random generators are global, so threads take turns.
LOCK = threading.RLock()
