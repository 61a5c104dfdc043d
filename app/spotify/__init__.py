"""Spotify: its clients, the connections of people, their tokens, and the gateway to the Web API."""
