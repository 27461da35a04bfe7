"""Models: towers, two-tower models, CoCa, generation and model files."""
