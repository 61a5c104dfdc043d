"""The items of the sandbox that libraries read and change, and the failures that they meet."""

from typing import Any

ITEMS = {
    "album": "pn7slPspdu7J45vXqyDOl0",
    "other_album": "9JbCSldmtC8hL72mOU0rZL",
    "artist": "3gWIOmHr9NE8CUNUdrg6FK",
    "other_artist": "l8emPnkoQNdnVfZ037nhsx",
    "track": "pnIHmtSRohbbmQN7O1jzw5",
    "other_track": "hCPkaq2G8zsIEl5Qz8dd5e",
    "third_track": "xl0nkk5PS966VU0tFE8jEw",
    "show": "bkxlRTVvVQnzyG6M1iTI30",
    "episode": "qV05jWFXQoF77jH0LqJvm8",
    "audiobook": "05VtJqY5oww0oc6BGdaN9v",
    "chapter": "WtYTzRsScHD0ZhVg2fSmne",
    "own_playlist": "mIgFW2FiWj4Ve35hKyjxAO",
    "foreign_playlist": "rVkoPZIHSzd1F2PQuKBcaT",
    "unfollowed_playlist": "xWK3HgDMbLGUfQbLVNUnth",
    "device": "8cgr9A0M7gH8u75wswxHSO",
    "other_device": "jd6I8tzZ2308wkktYiTM9w",
    "person": "mira_t_42",
    "other_person": "jonas.k",
    # Not in the sandbox's catalog. In `legacy` mode, any well-formed id has an item.
    "unlisted": "11dFghVXANMlKmJXsNCbNl",
    "cover": "/9j/2wCEAAEB",
}

# What the sandbox does to every call, by the name of the failure. Those that count as an outage of Spotify do
# not follow each other: after fifteen in a row, Backline stops calling Spotify for a while.
FAILURES: dict[str, dict[str, Any]] = {
    "html 502": {"kind": "google_502"},
    "malformed request": {"kind": "bearer_only"},
    "plain-text 503": {"kind": "envoy_503"},
    "expired token": {"kind": "unauthorized_expired"},
    "empty 503": {"kind": "empty_503"},
    "missing permission, 401": {"kind": "permissions_missing"},
    "missing scope": {"kind": "insufficient_scope"},
    "json 502": {"kind": "json_502"},
    "forbidden": {"kind": "forbidden"},
    "not on the allowlist": {"kind": "not_registered"},
    "lapsed premium": {"kind": "owner_not_premium"},
    "json 500": {"kind": "json_500"},
    "premium required": {"kind": "premium_required"},
    "restriction violated": {"kind": "restriction_violated"},
    "no active device": {"kind": "no_active_device"},
    "unknown device": {"kind": "device_not_found"},
    "not found": {"kind": "not_found"},
    "no content": {"kind": "no_content"},
    "bare word": {"kind": "bare_word"},
    "html 200": {"kind": "html_200"},
    "empty 200": {"kind": "empty_200"},
    "lost response": {"kind": "close", "after_effect": True},
    "rate limit": {"kind": "rate_limited", "retry_after": 1},
}
