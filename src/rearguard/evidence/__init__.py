"""The evidence log: append inside the caller's transaction, read, verify, project to the named files."""
