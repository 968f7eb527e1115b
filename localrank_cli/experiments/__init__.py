"""Small training runs with a known or published answer, compared with what localrank measures."""
