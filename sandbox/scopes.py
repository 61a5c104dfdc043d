"""The scopes that an ordinary app may request, and their descriptions for the consent page.

Retired scopes (`user-read-birthdate`) and partner-only ones are missing: requesting one is an illegal
scope.
"""

from __future__ import annotations

IN_WORDS: dict[str, str] = {
    "app-remote-control": "Control the Spotify app on your device",
    "playlist-modify-private": "Create and change your private playlists",
    "playlist-modify-public": "Create and change your public playlists",
    "playlist-read-collaborative": "See the playlists you make together with others",
    "playlist-read-private": "See your private playlists",
    "streaming": "Play music and control playback in this app",
    "ugc-image-upload": "Upload cover images for your playlists",
    "user-follow-modify": "Follow and unfollow people and artists for you",
    "user-follow-read": "See whom you follow",
    "user-library-modify": "Add and remove things in Your Library",
    "user-library-read": "See what you saved in Your Library",
    "user-modify-playback-state": "Control playback on your devices",
    "user-read-currently-playing": "See what you are listening to right now",
    "user-read-email": "See your email address",
    "user-read-playback-position": "See where you stopped in podcasts and audiobooks",
    "user-read-playback-state": "See your devices and what is playing on them",
    "user-read-private": "See your country and the kind of subscription you have",
    "user-read-recently-played": "See what you played recently",
    "user-top-read": "See your favorite artists and tracks",
}
