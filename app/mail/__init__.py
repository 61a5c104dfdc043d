"""Emails: an outbox in the database, and the thread that delivers it."""
