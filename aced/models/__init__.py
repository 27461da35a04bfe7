"""The models: towers, how they are put together, and the papers' sizes."""
