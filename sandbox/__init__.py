"""A Spotify to develop and test against: accounts service and Web API on one loopback port.

It is strict where Spotify is strict and wrong where Spotify is wrong. It holds everything in
memory, knows only invented people and music, and refuses to run with APP_ENV=production.
Start it with `python -m sandbox`; everything under `/_sandbox/` steers it.
"""
