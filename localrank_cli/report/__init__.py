"""One HTML page of a table: works offline, asks nothing of any server, needs no further package."""
