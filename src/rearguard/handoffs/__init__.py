"""Messages to people: a record first, delivered later; nothing on the rollback path waits for them."""
