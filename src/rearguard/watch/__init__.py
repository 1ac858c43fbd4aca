"""Watching places: counts of what telemetry says."""
