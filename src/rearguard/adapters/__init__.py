"""What connects the product to the outside: targets, telemetry and channels; each implements a port."""
