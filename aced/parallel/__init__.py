"""Meshes, shardings, micro-batches, and processes that run as one."""
