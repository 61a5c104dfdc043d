"""The authorization code flow that connects a person with Spotify."""
