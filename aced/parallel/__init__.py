"""Meshes, shardings, micro-batches, and multi-process runs."""
