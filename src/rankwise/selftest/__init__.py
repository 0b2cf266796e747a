"""Reliability, tried on the user's own machine and disk: trainings of a tiny random model, harmed in many ways."""
