"""Tests that look at MLflow's pages with a browser."""
