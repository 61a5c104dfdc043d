"""Runs other people's scanners against the service as deployed: nginx, gunicorn, and the Vue app.

    python -m tests.scanners [NAME…]

The names are those of SCANNERS. testssl.sh, slowhttptest, and chromium come from apt-get; the others are
installed in ~/.cache/backline-scanners. Exits 1 on a finding that docs/scanners.md does not explain.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import SETTINGS
from tests.helpers.browser import FLAGS, chromium_path
from tests.helpers.servers import (
    Nginx,
    Unavailable,
    migrate,
    running_nginx,
    running_redis,
    running_server,
)
from tests.spa.pages import build, serving

TOOLS = Path.home() / ".cache/backline-scanners"
LIMIT_S = 900

# The scanners do not send the host name in TLS, so ours is the default server.
CHANGES = {
    "listen 443 ssl http2 default_server;": "listen 443 ssl http2;",
    (
        "    server {\n        listen 443 ssl http2;\n        listen [::]:443 ssl http2;\n"
        f"        server_name {Nginx.HOST};"
    ): (
        "    server {\n        listen 443 ssl http2 default_server;\n        listen [::]:443 ssl http2;\n"
        f"        server_name {Nginx.HOST} localhost 127.0.0.1;"
    ),
}
PAGES = ("/api/session", "/api/docs", "/api/openapi.json", "/.well-known/jwks.json", "/api/user", "/nothing")

# What docs/scanners.md explains.
EXPLAINED = {
    "sslyze": {"certificate_path_validation"},
    "testssl": {
        "DNS_CAArecord",
        "cert_chain_of_trust",
        "cert_expirationStatus",
        "cert_notAfter",
        "cert_revocation",
        "cipher_order",
        "engine_problem",
    },
    "wapiti": {"Clickjacking Protection: X-Frame-Options is not set"},
    "lighthouse": {"robots-txt", "uses-text-compression", "uses-long-cache-ttl", "cache-insight"},
}


@dataclass(frozen=True)
class Service:
    """What is scanned."""

    nginx: Nginx
    pages: str
    home: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.nginx.port}"


@contextmanager
def running_service() -> Iterator[Service]:
    """Run the API behind nginx, and the Vue app."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(home / "dist", image_hosts="http://127.0.0.1:1")
        pages = stack.enter_context(serving(home / "dist"))
        settings = {
            **SETTINGS,
            "DATABASE_URL": f"sqlite:///{home / 'backline.sqlite3'}",
            "REDIS_URL": stack.enter_context(running_redis()),
            "SPOTIFY_ACCOUNTS_URL": "http://127.0.0.1:1",
            "SPOTIFY_API_URL": "http://127.0.0.1:1",
            "CORS_ORIGINS": pages.origin,
            "TRUSTED_PROXIES": "1",
            "TRUSTED_HOSTS": f"{Nginx.HOST},localhost,127.0.0.1",
        }
        migrate(settings)
        server = stack.enter_context(running_server({**settings, "SESSION_COOKIE_SECURE": "true"}))
        nginx = stack.enter_context(running_nginx(server.port, CHANGES))
        # The page has another site's cookie rules over http, so it uses gunicorn directly.
        pages.api_url = server.url
        yield Service(nginx, pages.origin, home)


def redbot(service: Service) -> set[str]:
    """Run REDbot, which also sends conditional and partial requests, on some pages."""
    program = python_tool("redbot", "redbot==2.7.1")
    found = set()
    for page in PAGES:
        report = json.loads(output(program, "-o", "har", f"{service.url}{page}"))
        found |= {
            f"{page}: {note['note_id']}"
            for entry in report["log"]["entries"]
            for note in entry["_red_messages"]
            if note["level"] in ("WARN", "BAD") and not note["note_id"].startswith("STATUS_")
        }
    return found


def sslyze(service: Service) -> set[str]:
    """Compare TLS with Mozilla's intermediate configuration."""
    program = python_tool("sslyze", "sslyze==6.3.1")
    options = ["--mozilla_config=intermediate", "--sni", Nginx.HOST]
    text = output(program, *options, f"127.0.0.1:{service.nginx.port}")
    assert "COMPLIANCE AGAINST" in text, text
    return set(re.findall(r"^ +\* (\w+): ", text.partition("COMPLIANCE AGAINST")[2], re.MULTILINE))


def testssl(service: Service) -> set[str]:
    """Run testssl.sh."""
    report = service.home / "testssl.json"
    options = ["--ip", "127.0.0.1", "--quiet", "--color", "0", "--warnings", "off", "--sneaky"]
    target = f"{Nginx.HOST}:{service.nginx.port}"
    output(installed("testssl", "testssl.sh"), *options, "-oj", str(report), target)
    entries = json.loads(report.read_text(encoding="utf-8"))
    assert len(entries) > 100, "testssl.sh did not finish"
    return {entry["id"] for entry in entries if entry["severity"] not in ("OK", "INFO")}


def wapiti(service: Service) -> set[str]:
    """Attack every route of the OpenAPI document."""
    program = python_tool("wapiti", "wapiti3==3.2.3")
    report = service.home / "wapiti.json"
    options = [
        "--swagger",
        f"{service.url}/api/openapi.json",
        "--scope",
        "domain",
        "--flush-session",
        "--no-bugreport",
    ]
    limits = ["--max-scan-time", "200", "--max-attack-time", "60"]
    output(program, "-u", f"{service.url}/api/docs", *options, *limits, "-f", "json", "-o", str(report))
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    assert found["infos"]["crawled_pages_nbr"] > 30, found["infos"]
    return {
        f"{kind}: {problem['info']}"
        for kind, problems in [*found["vulnerabilities"].items(), *found["anomalies"].items()]
        for problem in problems
    }


def slowhttptest(service: Service) -> set[str]:
    """Hold 400 slow connections of each kind, and look for times when others get no response."""
    program = installed("slowhttptest", "slowhttptest")
    target = f"https://127.0.0.1:{service.nginx.port}/api/session"
    options = ["-c", "400", "-r", "200", "-i", "10", "-l", "25", "-p", "5", "-t", "GET", "-u", target]
    return {
        f"{kind}: not available"
        for kind in ("-H", "-B", "-R", "-X")
        if "NO" in availability(program, kind, *options)
    }


def availability(program: str, *options: str) -> list[str]:
    """Return the words after "service available"."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", output(program, *options))
    found = re.findall(r"service available:\s+(\w+)", text)
    assert found, text
    return found


def lighthouse(service: Service) -> set[str]:
    """Run lighthouse on the first page of the Vue app, without its timings."""
    program = node_tool("lighthouse", "lighthouse@12.8.2")
    report = service.home / "lighthouse.json"
    options = ["--quiet", "--output=json", f"--output-path={report}", "--max-wait-for-load=60000"]
    categories = "--only-categories=accessibility,best-practices,seo"
    flags = f"--chrome-flags={' '.join(['--headless', *FLAGS])}"
    output(program, f"{service.pages}/sign-in", *options, categories, flags, CHROME_PATH=chromium_path())
    audits = json.loads(report.read_text(encoding="utf-8"))["audits"]
    return {name for name, audit in audits.items() if audit["score"] is not None and audit["score"] < 0.9}


SCANNERS: dict[str, Callable[[Service], set[str]]] = {
    "redbot": redbot,
    "sslyze": sslyze,
    "testssl": testssl,
    "wapiti": wapiti,
    "slowhttptest": slowhttptest,
    "lighthouse": lighthouse,
}


def python_tool(name: str, requirement: str) -> str:
    """Install a package into an environment of its own. Return its program."""
    home = TOOLS / requirement
    if not (home / "bin" / name).exists():
        output(sys.executable, "-m", "venv", "--clear", str(home))
        output(str(home / "bin/pip"), "install", "--quiet", requirement)
    return str(home / "bin" / name)


def node_tool(name: str, package: str) -> str:
    """Install a package into a folder of its own. Return its program."""
    home = TOOLS / package
    if not (home / "node_modules/.bin" / name).exists():
        output("npm", "install", "--silent", "--no-audit", "--prefix", str(home), package)
    return str(home / "node_modules/.bin" / name)


def installed(name: str, package: str) -> str:
    """Return a program. Raise Unavailable if it is not installed."""
    if found := shutil.which(name):
        return found
    raise Unavailable(f"{name} is not installed: apt-get install {package}")


def output(*command: str, **environment: str) -> str:
    """Run a command, whatever its status is, and return what it prints."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=LIMIT_S,
    )
    return done.stdout or done.stderr


def main() -> int:
    """Run the scanners in the arguments, and print what they find."""
    parser = argparse.ArgumentParser(prog="python -m tests.scanners")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *SCANNERS])
    names = parser.parse_args().names or list(SCANNERS)
    status = 0
    with running_service() as service:
        for name in names:
            print(f"{name} …", flush=True)
            try:
                found = SCANNERS[name](service)
            except (Unavailable, AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                print(f"    not checked: {error}", flush=True)
                continue
            for finding in sorted(found):
                explained = finding in EXPLAINED.get(name, set())
                print(f"    {'explained' if explained else 'NEW      '}  {finding}", flush=True)
                status |= not explained
            if not found:
                print("    no findings", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
