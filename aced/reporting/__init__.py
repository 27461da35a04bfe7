"""The parts of `python -m aced.report`."""
