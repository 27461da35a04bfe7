"""HTML pages with curves and images of runs: `python -m aced.report`."""
