"""Stages of `dvc.yaml` that make spectrograms; leaves that nothing imports."""
