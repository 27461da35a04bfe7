"""Data sets, preprocessing, and the pipeline from the one to batches."""
