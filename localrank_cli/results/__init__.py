"""The tidy table: columns, files, manifest."""
