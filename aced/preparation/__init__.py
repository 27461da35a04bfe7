"""`python -m aced.prepare`, part by part; `graph.py` is the whole."""
