"""Scripts that train as a user's would, each run as `train.py` in a folder of its own."""
