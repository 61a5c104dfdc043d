"""The alerts and the dashboard, checked by Prometheus' own tools and against the real metrics."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import cannot_run
from tests.helpers.processes import RedisServer
from tests.helpers.servers import LONG, ROOT, Server, Unavailable, eventually, free_port, running_program
from tests.system.test_failover import old_primary

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]

RULES = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
__all__ = ["old_primary"]  # a fixture

METRIC = re.compile(r"\bbackline_\w+")
StartServer = Callable[..., AbstractContextManager[Server]]


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        cannot_run(Unavailable(f"{name} is not installed"))
    return found


@pytest.mark.parametrize(
    "arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]]
)
def test_alerts_are_correct(arguments: list[str]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_a_section_in_the_runbook() -> None:
    tested = re.findall(r"alertname: (\w+)", (RULES.parent / "alerts_test.yml").read_text())
    runbook = (ROOT / "docs/runbook.md").read_text()
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]

    assert {rule["alert"] for rule in rules} == set(tested)
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert f"\n## {rule['alert']}\n" in runbook


def test_documents_use_only_metrics_that_exist(server: StartServer) -> None:
    with server(workers=1) as api:
        requests.get(f"{api.url}/api/session", headers={"Authorization": "Bearer x"}, timeout=LONG)
        text = requests.get(f"{api.url}/metrics", timeout=LONG).text
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    exported |= {f"{name}{suffix}" for name in exported for suffix in ("_count", "_bucket", "_sum")}
    queries = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    ]
    rules = [rule["expr"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    # Metrics of the Web API exist once it has been called: tests/spotify/gateway/test_metrics.py.
    after_calls = {"backline_gateway_requests_total", "backline_web_api_call_seconds"}
    after_calls.add("backline_web_api_call_seconds_bucket")

    for where in (" ".join(queries), " ".join(rules), (ROOT / "docs/monitoring.md").read_text()):
        assert set(METRIC.findall(where)) <= exported | after_calls
    assert exported & set(METRIC.findall((ROOT / "docs/monitoring.md").read_text()))


def test_alert_fires_when_a_dependency_is_stopped(
    server: StartServer, old_primary: RedisServer, tmp_path: Path
) -> None:
    rules = re.sub(r"for: \w+", "for: 1s", RULES.read_text())
    (tmp_path / "alerts.yml").write_text(rules)
    port = free_port()
    with server(workers=1, REDIS_URL=f"unix://{old_primary.socket}") as api:
        config: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {"job_name": "backline", "static_configs": [{"targets": [api.url.removeprefix("http://")]}]}
            ],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        url = f"http://127.0.0.1:{port}"
        command = [program("prometheus"), f"--config.file={tmp_path}/prometheus.yml"]
        command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]

        def is_up() -> bool:
            return requests.get(f"{url}/-/ready", timeout=LONG).ok

        def firing() -> set[str]:
            alerts = requests.get(f"{url}/api/v1/alerts", timeout=LONG).json()["data"]["alerts"]
            return {
                f"{alert['labels']['alertname']} {alert['labels'].get('dependency', '')}".strip()
                for alert in alerts
                if alert["state"] == "firing"
            }

        def value(metric: str) -> list[str]:
            query = requests.get(f"{url}/api/v1/query", params={"query": metric}, timeout=LONG).json()
            return [series["value"][1] for series in query["data"]["result"]]

        with running_program(command, is_up, env={}):
            eventually(lambda: value("backline_dependency_up") == ["1", "1"])
            old_primary.kill()
            eventually(lambda: "BacklineDependencyDown redis" in firing())
