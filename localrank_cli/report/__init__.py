"""A self-contained HTML page of a table: works offline, loads nothing, needs no further package."""
