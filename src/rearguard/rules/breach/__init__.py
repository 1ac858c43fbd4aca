"""Counts to breach: one file a rule."""
