"""Sentences for distillation without pairs: `python -m aced.select_text`."""
