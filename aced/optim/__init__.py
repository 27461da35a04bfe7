"""Optimizers, schedules, durations, and the state that a train step maps to the next."""
