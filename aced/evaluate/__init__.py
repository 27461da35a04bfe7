"""Evaluates a trained or converted model on the evaluations of a config, data sets, or suites."""

from aced.evaluate.command import EvaluateConfig, run

__all__ = ["EvaluateConfig", "run"]
