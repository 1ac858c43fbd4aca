"""Recovery: the steps of a rollback, in order."""
