"""Tests of the package `pipeline`, a file for each of its modules."""
