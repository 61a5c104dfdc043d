"""The clock, the stores, the HTTP client, encryption, and logs. Nothing here knows Spotify or a route."""
