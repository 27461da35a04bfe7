"""Optimizers, schedules, durations and the train state."""
