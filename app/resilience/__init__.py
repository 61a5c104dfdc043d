"""Patterns that keep one slow or failing server from stopping everything else."""
