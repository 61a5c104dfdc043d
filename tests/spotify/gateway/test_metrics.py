"""Metrics of the gateway's calls."""

import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from tests.helpers.flows import another_tab
from tests.helpers.metrics import MetricDeltas, samples
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, Server, eventually
from tests.helpers.upstream import JSON, Received, Reply, Upstream, connect_through, problem_of_spotify

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

GATEWAY = "/api/spotify/v1"
REQUESTS = "backline_gateway_requests_total"
CALLS = "backline_web_api_call_seconds"
WAIT = "backline_web_api_wait_seconds"
StartServer = Callable[..., AbstractContextManager[Server]]


def test_metrics_count_requests_by_route_outcome_and_cache(
    connected: FlaskClient, upstream: Upstream
) -> None:
    deltas = MetricDeltas(lambda: connected.get("/metrics").text)
    upstream.replies(Reply(200, b"{}", JSON, (("Cache-Control", "max-age=60"),)))
    for _ in range(3):
        connected.get(f"{GATEWAY}/playlists/37i9dQZF1DXcBWIGoYBM5M/items?fields=secret-query")
    upstream.replies(problem_of_spotify(404, "Device not found"))
    connected.put(f"{GATEWAY}/me/player/volume?device_id=secret-device")
    upstream.replies(problem_of_spotify(403, "Insufficient client scope"))
    connected.put(f"{GATEWAY}/me/player/volume")
    upstream.replies(Reply(0))
    connected.put(f"{GATEWAY}/me/player/volume")
    upstream.replies(Reply(204, b"", None))
    connected.delete(f"{GATEWAY}/no-such/endpoint-of-anybody's/secret-id")
    connected.get(f"{GATEWAY}/../secret-path")
    connected.open(f"{GATEWAY}/me", method="PROPFIND")

    items = {"method": "GET", "route": "playlists/{id}/items", "outcome": "200"}
    volume = {"method": "PUT", "route": "me/player/volume"}
    assert deltas.of(REQUESTS, **items, cache="miss") == 1
    assert deltas.of(REQUESTS, **items, cache="hit") == 2
    assert deltas.of(REQUESTS, **volume, outcome="404", cache="miss") == 1
    assert deltas.of(REQUESTS, **volume, outcome="insufficient-scope", cache="") == 1
    assert deltas.of(REQUESTS, **volume, outcome="spotify-outcome-unknown", cache="") == 1
    assert deltas.of(REQUESTS, method="DELETE", route="other", outcome="204", cache="miss") == 1
    assert deltas.of(REQUESTS) == 7

    text = connected.get("/metrics").text
    assert "37i9" not in text
    assert "secret" not in text
    assert "endpoint-of" not in text


def test_metrics_time_calls_by_route_and_status(connected: FlaskClient, upstream: Upstream) -> None:
    deltas = MetricDeltas(lambda: connected.get("/metrics").text)
    upstream.replies(Reply(401), problem_of_spotify(502, "Bad gateway."), Reply(0), Reply(200))
    connected.get(f"{GATEWAY}/tracks/x")
    connected.get(f"{GATEWAY}/tracks/y")

    track = {"method": "GET", "route": "tracks/{id}"}
    for status, number in (("401", 1), ("502", 1), ("none", 1), ("200", 1)):
        assert deltas.of(f"{CALLS}_count", **track, status=status) == number, status
        assert deltas.of(f"{CALLS}_sum", **track, status=status) > 0
        assert deltas.of(f"{CALLS}_bucket", **track, status=status, le="+Inf") == number
    assert deltas.of(f"{CALLS}_count") == len(upstream.calls) == 4


def test_calls_continue_the_trace_of_their_request(connected: FlaskClient, upstream: Upstream) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    for _ in range(2):
        connected.put(f"{GATEWAY}/me/player", headers={"traceparent": f"cc-{trace}-{span}-fd-later"})
    connected.put(f"{GATEWAY}/me/player", headers={"traceparent": f"00-{trace}-{span}"})

    *sent, none = (call.headers["traceparent"] for call in upstream.calls)
    assert none is None
    spans = {re.fullmatch(rf"00-{trace}-([0-9a-f]{{16}})-01", header)[1] for header in sent}  # type: ignore[index]
    assert len(spans | {span}) == 3


def test_metrics_report_the_wait_for_all_calls_and_its_end(
    connected: FlaskClient, app: Flask, another_worker: Flask, upstream: Upstream
) -> None:
    def waits(worker: Flask) -> float:
        return samples(worker.test_client().get("/metrics").text)[WAIT, frozenset()]

    assert waits(app) == 0
    upstream.replies(Reply(429, b"Too many requests", "text/plain", (("Retry-After", "40"),)))
    deltas = MetricDeltas(lambda: connected.get("/metrics").text)

    assert connected.put(f"{GATEWAY}/me/player").status_code == 429

    assert deltas.of(REQUESTS, route="me/player", outcome="spotify-rate-limited", cache="") == 1
    assert deltas.of(f"{CALLS}_count", route="me/player", status="429") == 1
    for worker in (app, another_worker):
        assert 0 < waits(worker) <= 40


def test_metrics_list_the_wait_of_one_endpoint(
    connected: FlaskClient, another_worker: Flask, upstream: Upstream
) -> None:
    def reply(call: Received) -> Reply:
        rejected = Reply(429, b"", "text/plain", (("Retry-After", "Sat, 01 Jan 2050 00:00:00 GMT"),))
        return rejected if call.target.endswith("/images") else Reply()

    upstream.reply = reply
    assert connected.put(f"{GATEWAY}/playlists/x/images", json={}).status_code == 429
    for who in (connected, another_worker.test_client()):
        found = {
            key: value for key, value in samples(who.get("/metrics").text).items() if "wait_seconds" in key[0]
        }
        route = frozenset({("route", "playlists/{id}/images")})
        assert found.pop((WAIT, frozenset())) == 0
        assert list(found) == [("backline_web_api_endpoint_wait_seconds", route)]
        assert 86_000 < found.popitem()[1] <= 86_400


def test_metrics_include_all_workers_even_dead_ones(
    server: StartServer, client: FlaskClient, sandbox: SandboxClient, upstream: Upstream, tmp_path: Path
) -> None:
    connect_through(client, sandbox, upstream)
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    with server(workers=2, threads=4, TMPDIR=str(tmp_path)) as api:
        ours = {"Cookie": f"backline_session={cookie.value}", "X-Requested-With": "test"}

        def call(times: int) -> None:
            # Each on another connection, so that both workers get some.
            for _ in range(times):
                done = requests.put(f"{api.url}{GATEWAY}/me/player", headers=ours, timeout=LONG)
                assert done.status_code == 200, done.text

        def total(name: str) -> float:
            text = requests.get(f"{api.url}/metrics", timeout=LONG).text
            return sum(value for (found, _), value in samples(text).items() if found == name)

        def worker_labels(files: str = "*.db") -> set[str]:
            return {path.stem.rpartition("_")[2] for path in tmp_path.glob(f"backline-metrics-*/{files}")}

        calls, deadline = 0, time.monotonic() + LONG
        while calls < 10 or (len(worker_labels("histogram_*.db")) < 2 and time.monotonic() < deadline):
            call(5)
            calls += 5
        assert worker_labels("histogram_*.db") == worker_labels() == {str(pid) for pid in api.workers}
        of_two_workers = eventually(lambda: total("backline_pool_max_connections"))
        for _ in range(6):  # whichever worker responds
            assert total(REQUESTS) == total(f"{CALLS}_count") == calls

        gone = api.kill_worker()
        eventually(lambda: len(api.workers) == 2 and gone not in api.workers)
        call(4)
        assert total(REQUESTS) == calls + 4
        assert total(WAIT) == 0
        eventually(lambda: total("backline_pool_max_connections") == of_two_workers)
        assert str(gone) not in worker_labels()

        calls += 4
        before = set(api.workers)
        api.signal(signal.SIGHUP)
        eventually(lambda: len(api.workers) == 2 and not before & set(api.workers))
        call(4)
        calls += 4
        eventually(lambda: worker_labels() <= {"merged", *map(str, api.workers)})
        assert total(REQUESTS) == total(f"{CALLS}_count") == calls

        api.signal(signal.SIGTERM)
        assert api.wait() == 0
        assert list(tmp_path.iterdir()) == []


def test_gunicorn_removes_the_metrics_of_a_killed_one(server: StartServer, tmp_path: Path) -> None:
    def directories() -> list[Path]:
        return list(tmp_path.glob("backline-metrics-*"))

    with server(workers=1, TMPDIR=str(tmp_path)) as first:
        [left] = directories()
        first.signal(signal.SIGKILL)
        first.wait()
        with server(workers=1, TMPDIR=str(tmp_path)):
            [living] = directories()
            assert living != left
            with server(workers=1, TMPDIR=str(tmp_path)):
                assert living in directories()  # its arbiter is alive


def test_gunicorn_keeps_a_directory_that_the_operator_set(server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with server(workers=1, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as api:
        requests.get(f"{api.url}/metrics", timeout=LONG)
        api.signal(signal.SIGTERM)
        assert api.wait() == 0

    assert (tmp_path / "kept").exists()


def test_metrics_count_requests_that_waited_as_shared(
    connected: FlaskClient, another_worker: Flask, upstream: Upstream
) -> None:
    arrived, released = threading.Event(), threading.Event()

    def reply(_: Received) -> Reply:
        arrived.set()
        assert released.wait(LONG)
        return Reply()

    upstream.reply = reply
    deltas = MetricDeltas(lambda: another_worker.test_client().get("/metrics").text)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(another_tab(connected).get, f"{GATEWAY}/tracks/x")
        assert arrived.wait(LONG)
        second = pool.submit(another_tab(connected, another_worker).get, f"{GATEWAY}/tracks/x")
        eventually(lambda: another_worker.extensions["backline"].gateway._bulkhead._admissions)  # it waits
        released.set()
        assert {first.result().headers["X-Cache"], second.result().headers["X-Cache"]} == {"miss", "shared"}

    assert deltas.of(REQUESTS, route="tracks/{id}", cache="shared") == 1
    assert deltas.of(f"{CALLS}_count", route="tracks/{id}") == 1
