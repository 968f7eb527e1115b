"""Import what the commands do, and put it aside: each build of a network would walk through it."""

import gc
import importlib
import pkgutil

import localrank_cli

_PROGRAMS = ("__main__", "last_resort")  # which act as they are imported

for module in pkgutil.walk_packages(localrank_cli.__path__, f"{localrank_cli.__name__}."):
    if not module.name.endswith(_PROGRAMS):
        importlib.import_module(module.name)
gc.collect()
gc.freeze()
