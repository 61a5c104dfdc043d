"""A local Spotify for development and tests: the accounts service and the Web API on one loopback port.

It enforces Spotify's rules and reproduces its quirks. People and music are invented, all state is in
memory, and it does not start with APP_ENV=production. Start it with `python -m sandbox`, and control it
through `/_sandbox/`.
"""
