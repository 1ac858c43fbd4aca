"""Public test suites for authors of adapters."""
