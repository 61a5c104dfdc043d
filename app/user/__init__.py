"""The profile, the sessions, and the data of the signed-in user."""
