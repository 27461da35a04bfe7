"""Memory and cost of a run on hardware that is not there: `python -m aced.preflight`."""
