"""The two hosts of Spotify: the accounts service and the Web API."""
