"""Losses: pure functions of embeddings, usable alone."""
