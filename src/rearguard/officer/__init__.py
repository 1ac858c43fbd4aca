"""The one door: every operation that an interface may call, each marked with its effect.

An interface opens an `Office` and calls the functions of these modules, nothing under them.
"""
