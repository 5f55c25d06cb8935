"""Spectrograms to a model, its runs and its sounds."""
