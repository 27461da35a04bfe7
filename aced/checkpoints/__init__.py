"""Checkpoints, and the record of a run's settings."""
