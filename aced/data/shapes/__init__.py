"""Scenes of coloured shapes with captions, drawn from a seed: known noise, no download."""
