"""Data sets from images and captions, by Apache Beam: `python -m aced.prepare`."""
