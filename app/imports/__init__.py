"""Moves connections in from other services, without asking people for consent again."""
