"""The Python code of the scripts next to this file."""
