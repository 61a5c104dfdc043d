"""Measurements with real processes, on one machine."""
