"""Durable execution: the only room that imports the workflow engine (ADR 0001)."""
