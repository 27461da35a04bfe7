"""Latency, cost and memory of a model's towers on this machine."""
