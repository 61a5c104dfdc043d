"""How many threads of a worker may wait for Spotify, and how many the worker therefore needs."""

# Calls to the Web API that each worker may have in progress, even with few threads.
_MIN_WEB_API_SLOTS = 16
# Requests in each worker that may wait for a slot.
WEB_API_QUEUE = 64
# Threads that may wait for a fast accounts service, even with few threads.
_MIN_ACCOUNTS_WAITERS = 128


def web_api_slots(threads: int) -> int:
    """Return how many calls to the Web API a worker may have in progress."""
    return max(_MIN_WEB_API_SLOTS, threads // 2)


def accounts_waiters(threads: int) -> int:
    """Return how many threads of a worker may wait for the accounts service."""
    return max(_MIN_ACCOUNTS_WAITERS, threads)


def thread_pool_size(threads: int) -> int:
    """Return how many threads a worker needs so that `threads` remain while both of Spotify's hosts hang."""
    return threads + web_api_slots(threads) + WEB_API_QUEUE + accounts_waiters(threads)
