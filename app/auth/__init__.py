"""Credentials: registration, sign-in, passwords, and email addresses."""
