"""The Web API on a person's behalf."""
