"""Decisions: pure functions of values and an explicit `now`; no clock, no file, no random number, no logger."""
