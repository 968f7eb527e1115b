"""Put aside what was imported before, which each build of a network would walk through."""

import gc

gc.collect()
gc.freeze()
