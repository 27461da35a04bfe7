"""Meshes, shardings, and work cut into pieces."""
