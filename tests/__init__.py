import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # The other cores belong to the other workers. Said here, before anything imports numpy: its
    # threads spin while they wait. The processes that tests start have it, too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
