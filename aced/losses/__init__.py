"""Losses: pure functions of embeddings, usable on their own."""
