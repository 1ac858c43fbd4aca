"""Interfaces: they call the officer and nothing under it."""
