"""Intervals that hold the local rank with a stated probability, from products alone."""
