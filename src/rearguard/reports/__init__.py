"""Reports: what the evidence says, built as values and rendered as text."""
