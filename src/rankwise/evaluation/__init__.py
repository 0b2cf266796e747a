"""Evaluation: task scores with confidence intervals, and forgetting."""
