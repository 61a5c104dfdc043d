"""Chaos: real processes, broken on purpose, and a checker that reads what became of every grant.

`world` runs the servers behind fault proxies, `drills` are scripted scenarios, `generator` makes
random ones from a seed, and `checker` proves from the database's own history and the sandbox's
journal that no refresh was lost, done twice, or done to the wrong grant.
"""
