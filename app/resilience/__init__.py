"""Patterns that contain the failure of one server: circuit breaker, bulkhead, locks, and limits."""
