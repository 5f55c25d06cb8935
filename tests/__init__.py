"""Tests, as a package: so that `tests/pipeline/` and `pipeline/` are told apart, and both may hold a `test_params.py`."""
