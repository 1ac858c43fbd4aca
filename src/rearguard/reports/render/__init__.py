"""Renderers: a report value in, text out; nothing is computed here."""
