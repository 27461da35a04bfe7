"""The training loop, one for all methods, and what it builds before its first step."""
