"""Sends email: an outbox in the database, and a thread that delivers from it."""
