"""Channels to people: webhook, file, command."""
