"""Sound to spectrograms: load, pad, transform, normalise and save, on one core or many."""
