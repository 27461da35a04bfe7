"""Pretraining of small image-text models: ACID, ACED, DIME-FM and OPTIMA in JAX."""
