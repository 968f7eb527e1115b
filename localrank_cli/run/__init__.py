"""From options to a plan, from a plan to results, one checkpoint at a time."""
