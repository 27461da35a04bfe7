"""Reads and writes models of transformers, open_clip and big_vision, and our model folders.

Weights are read from safetensors or npz without pickle, settings from JSON; no code is executed.
"""
