"""Tests, as a package: it tells `tests/pipeline/` from `pipeline/`, and both folders may hold a `test_params.py`."""
