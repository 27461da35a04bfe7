"""Other libraries' models, read and written: transformers, open_clip, big_vision; our own folders.

Weights come from safetensors or from npz without pickle, settings from JSON; nothing that is read
is executed.
"""
