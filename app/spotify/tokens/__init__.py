"""Custody of tokens: stored, encrypted, and refreshed."""
