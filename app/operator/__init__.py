"""A page for operators: what the service has done in the last day, and what it waits for."""
