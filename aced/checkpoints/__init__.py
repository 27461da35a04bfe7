"""Checkpoints, and the record of the settings that a run was started with."""
