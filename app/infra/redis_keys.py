"""The keys that Backline uses in Redis, by prefix, and the permissions that its user needs there."""

# A colon follows each. One that is no longer used stays for a release: the previous one may still run.
KEY_PREFIXES = (
    "authorization",
    "device-authorization",
    "device-user-code",
    "hourly",
    "lock",
    "probe",
    "refresh",
    "session",
    "sessions-of",
    "shared",
    "spotify-budget",
    "spotify-calls",
    "spotify-canary",
    "spotify-independent",
    "spotify-last-rejection",
    "spotify-wait",
    "throttle",
    "version",
    "visitors-of",
)
# `deploy/install`, `deploy/compose.yaml`, `deploy/cluster`, and docs/operations.md have the same words.
PERMISSIONS = (
    " ".join(f"~{prefix}:*" for prefix in KEY_PREFIXES)
    + " resetchannels +@read +@write +@scripting +@transaction -@dangerous +time +ping +info"
    + " +wait +asking +cluster|slots"  # for failovers and clusters
)
