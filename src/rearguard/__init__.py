"""Rearguard: the Rollback & Recovery Officer for machine-learning models in production."""

__version__ = "0.1.0"
