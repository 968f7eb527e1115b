"""Settings: what the user may ask for, and what follows from it for one series."""
