"""The methods of arXiv 2411.18674 side by side, at equal examples trained and at equal FLOPs."""
