"""HTML pages with curves and pictures of runs: `python -m aced.report`."""
