"""The circuit breaker. tests/spotify/gateway/test_outages.py tests its effect on calls."""

from app.resilience import circuit_breaker


def test_single_caller_needs_more_failures_to_open_the_breaker() -> None:
    alone, together = circuit_breaker.CircuitBreaker(), circuit_breaker.CircuitBreaker()
    for number in range(circuit_breaker.FAILURES):
        assert alone.record_failure("ada") is False
        opened = together.record_failure(f"person {number % 2}")
    assert (alone.retry_after(), opened) == (0, True)
    assert [alone.record_failure("ada") for _ in range(10)] == [False] * 9 + [True]
