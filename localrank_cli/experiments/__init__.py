"""Small trainings with a known or published answer, held against what the tool measures."""
