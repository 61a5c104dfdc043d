"""Lets people register an application of their own."""
