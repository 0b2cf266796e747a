"""Measure this machine for a plan: `rankwise plan --probe`. The plan itself needs no torch (planning/plan.py)."""

from __future__ import annotations

from rankwise.training.probe import probe

__all__ = ["probe"]
