"""Metrics of a run: written, read, and shown as progress."""
