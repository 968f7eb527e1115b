"""Information between input, layer and target: closed forms and bounds from samples. No files."""
