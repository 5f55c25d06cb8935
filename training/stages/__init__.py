"""Stages of `dvc.yaml` that make, judge and register a model; leaves that nothing imports."""
