"""Run the test suites of libraries, directly against the sandbox and through Backline, and compare them.

    python -m tests.clients --spotipy DIR --tekore DIR --ts-sdk DIR --zmb3 DIR --packages DIR

Each option but the last is optional, and names a checkout of the library. `--packages` names a folder with
further Python packages: tekore's suite needs `pip install --target DIR pytest-asyncio`. The SDK's suite needs
`npm install --ignore-scripts` in its checkout. zmb3/spotify has no suite that calls the Web API, so it makes
the calls in tests/clients/zmb3. Exits with 1 if anything differs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients import go_calls
from tests.clients.accounts import PERSON, SCOPES, Account, spotify_tokens
from tests.clients.differences import unexpected_differences
from tests.clients.recording import Target
from tests.conftest import ANY_PORT_REDIRECT_URI, SETTINGS
from tests.helpers.sandbox_client import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    SandboxClient,
    running_sandbox,
)
from tests.helpers.servers import (
    Server,
    migrate,
    process_environment,
    running_redis,
    running_server,
)

SUITES = Path(__file__).parent / "suites"
# These open a browser or wait for input.
INTERACTIVE_TESTS = "not PKCE and not Implicit"

# What each test ended with, such as "passed", and the reason. Many fail in both runs: they expect real music.
Results = dict[str, tuple[str, str]]
RunSuite = Callable[[Path, dict[str, str]], Results]


def run_pytest(arguments: list[str], checkout: Path, env: dict[str, str]) -> Results:
    """Run a suite with pytest."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        options = ["-p", "library_suite_plugin", "-p", "no:cacheprovider", "-q", f"--junitxml={report.name}"]
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *arguments],
            cwd=checkout,
            env=env,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        cases = ET.parse(report.name).getroot().iter("testcase")  # noqa: S314 - our pytest wrote it
        return {
            f"{case.get('classname')}::{case.get('name')}": next(
                (
                    (child.tag, _first_line(child.get("message", "")))
                    for child in case
                    if child.tag in ("failure", "error", "skipped")
                ),
                ("passed", ""),
            )
            for case in cases
        }


def run_spotipy(checkout: Path, env: dict[str, str]) -> Results:
    """Run spotipy's integration tests."""
    folders = ["tests/integration/user_endpoints/test.py", "tests/integration/non_user_endpoints/test.py"]
    return run_pytest(["-k", INTERACTIVE_TESTS, *folders], checkout, env)


def run_tekore(checkout: Path, env: dict[str, str]) -> Results:
    """Run tekore's tests that call the Web API."""
    return run_pytest(["-m", "api", "tests"], checkout, env)


def run_ts_sdk(checkout: Path, env: dict[str, str]) -> Results:
    """Run the SDK's tests."""
    with tempfile.TemporaryDirectory() as folder:
        report, config = Path(folder, "report.json"), checkout / "vitest.backline.config.mjs"
        settings = {
            "root": "src",
            "test": {
                "globals": True,
                "environment": "jsdom",
                "setupFiles": [str(SUITES / "library_suite_setup.mjs")],
                "threads": False,
            },
        }
        config.write_text(f"export default {json.dumps(settings)};\n")
        subprocess.run(
            ["npx", "vitest", "run", "--config", config.name, "--reporter=json", f"--outputFile={report}"],
            cwd=checkout,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        config.unlink()
        return {
            f"{Path(file['name']).name}::{case['fullName'].strip()}": (
                case["status"],
                _first_line("".join(case["failureMessages"])),
            )
            for file in json.loads(report.read_text())["testResults"]
            for case in file["assertionResults"]
        }


SUITE_RUNNERS: dict[str, RunSuite] = {"spotipy": run_spotipy, "tekore": run_tekore, "ts-sdk": run_ts_sdk}


class Runs:
    """Runs something twice, each time in the world that the sandbox begins with."""

    def __init__(self, server: Server, sandbox: SandboxClient, packages: Path) -> None:
        self._server = server
        self._sandbox = sandbox
        self._packages = packages
        self._account = Account(server, sandbox)

    def _targets(self, **settings: object) -> Iterator[Target]:
        self._sandbox.reset()
        self._sandbox.settings(**settings)
        yield Target(self._sandbox.api_url, spotify_tokens(self._sandbox)["access_token"], self._sandbox)
        self._sandbox.reset()
        self._sandbox.settings(**settings)
        self._account.connect()
        yield Target(f"{self._server.url}/v1", self._account.create_token(), self._sandbox)

    def run_suite(self, name: str, checkout: Path) -> bool:
        """Run a suite twice. Returns whether each test ended in the same way."""
        directly, through_backline = (
            SUITE_RUNNERS[name](checkout, self._environment(name, checkout, target))
            for target in self._targets(mode="transition", any_id=True, account_id=False)
        )
        differing = {test for test in directly if directly[test] != through_backline.get(test)}
        differing |= set(through_backline) - set(directly)
        print(f"{name}: {len(directly)} tests, {len(differing)} differ; directly: {_counts(directly)}")
        for test in sorted(differing):
            print(f"  {test}: {directly.get(test)} directly, {through_backline.get(test)} through Backline")
        return bool(directly) and not differing

    def run_zmb3(self, checkout: Path) -> bool:
        """Make the calls of zmb3/spotify twice, with each kind of application."""
        same = True
        with go_calls.built(checkout) as program:
            for mode in ("legacy", "dev2026"):
                directly, through_backline = (
                    go_calls.record(program, target).outcomes for target in self._targets(mode=mode)
                )
                differing = unexpected_differences(directly, through_backline, shows_bodies=False)
                print(f"zmb3/spotify, {mode}: {len(directly)} calls, {len(differing)} differ")
                for label, pair in differing.items():
                    for how, outcome in zip(("directly", "through Backline"), pair, strict=True):
                        print(f"  {label}, {how}: {json.dumps(outcome):.300}")
                same = same and not differing
        return same

    def _environment(self, name: str, checkout: Path, target: Target) -> dict[str, str]:
        app = {"CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET, "REDIRECT_URI": REDIRECT_URI}
        folders = [SUITES, checkout / "src" if name == "tekore" else checkout, self._packages]
        return process_environment(
            {
                "SUITE": name,
                "BASE_URL": target.base_url,
                "TOKEN": target.token,
                "ACCOUNTS_URL": self._sandbox.accounts_url,
                "PYTHONPATH": ":".join(str(folder.resolve()) for folder in folders),
                **{
                    f"{prefix}_{key}": value
                    for prefix in ("SPOTIPY", "SPOTIFY")
                    for key, value in app.items()
                },
                "SPOTIPY_CLIENT_USERNAME": PERSON,
                "SPOTIFY_USER_REFRESH": spotify_tokens(self._sandbox)["refresh_token"],
                "INTEGRATION_TESTS_SPOTIFY_CLIENT_ID": CLIENT_ID,
                "INTEGRATION_TESTS_SPOTIFY_CLIENT_SECRET": CLIENT_SECRET,
                "INTEGRATION_TESTS_REFRESH_TOKEN": spotify_tokens(self._sandbox, pkce=True)["refresh_token"],
            }
        )


def _first_line(message: str) -> str:
    """Return the first line of a message, without addresses of servers."""
    return re.sub(r"http://127\.0\.0\.1:\d+", "", message.partition("\n")[0])


def _counts(results: Results) -> str:
    counts = Counter(status for status, _ in results.values())
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


@contextmanager
def running_backline() -> Iterator[tuple[Server, SandboxClient]]:
    """Run the sandbox, and Backline on SQLite."""
    with (
        tempfile.TemporaryDirectory(prefix="backline-suites-") as home,
        running_redis() as redis_url,
        running_sandbox([REDIRECT_URI, ANY_PORT_REDIRECT_URI]) as sandbox,
    ):
        settings = {
            **SETTINGS,
            "DATABASE_URL": f"sqlite:///{home}/backline.sqlite3",
            "REDIS_URL": redis_url,
            "SPOTIFY_ACCOUNTS_URL": sandbox.accounts_url,
            "SPOTIFY_API_URL": sandbox.api_url,
            "SPOTIFY_SCOPES": SCOPES,
            "MAIL_URL": "smtp://127.0.0.1:1",
            # Otherwise, the rate limits that the calls meet would slow down everything after them.
            "GATEWAY_BUDGET": "100000",
        }
        migrate(settings)
        del settings["SPOTIFY_REDIRECT_URI"]  # it is at the server
        with running_server(settings) as server:
            yield server, sandbox


def main() -> int:
    """Run the suites that the command line names. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in (*SUITE_RUNNERS, "zmb3"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR")
    parser.add_argument("--packages", type=Path, metavar="DIR", default=SUITES)
    arguments = vars(parser.parse_args())
    with running_backline() as (server, sandbox):
        runs = Runs(server, sandbox, arguments["packages"])
        same = [
            runs.run_suite(name, checkout)
            for name in SUITE_RUNNERS
            if (checkout := arguments[name.replace("-", "_")])
        ]
        if arguments["zmb3"]:
            same.append(runs.run_zmb3(arguments["zmb3"]))
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
