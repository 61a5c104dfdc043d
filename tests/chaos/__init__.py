"""Chaos tests: real processes with injected faults, and a checker for the history of every grant.

`deployment` runs the servers behind fault proxies, `scenarios` are scripted, `generator` makes random ones
from a seed, and `checker` proves from the database's history and the sandbox's journal that no refresh was
lost, made twice, or applied to the wrong grant.
"""
