"""How each scanner is run, and what it may find. docs/scanners.md explains both."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import requests

from tests.helpers.browser import FLAGS, chromium_path
from tests.helpers.servers import LONG, Nginx
from tests.scanners.programs import Incomplete, debian_program, node_program, output, python_program
from tests.scanners.service import Service
from tests.spa.pages import build

# What docs/scanners.md explains.
EXPLAINED: dict[str, set[str]] = {
    "slowhttptest": set(),
    "testssl": {
        "cert_chain_of_trust",
        "cert_expirationStatus",
        "cert_notAfter",
        "cert_revocation",
        "cipher_order",
    },
    "wapiti": {"Clickjacking Protection: X-Frame-Options is not set"},
    "lighthouse": {"robots-txt"},
    "redbot": {"/api/docs: CSP_UNSAFE_INLINE"},
    "sslyze": {"certificate_path_validation"},
}

# What REDbot visits, in addition to what the OpenAPI document lists.
PAGES = ("/api/docs", "/api/docs/start.js", "/api/openapi.json", "/.well-known/jwks.json", "/nothing")

# REDbot's own command cannot send a cookie.
REDBOT = """\
import sys, thor
from configparser import ConfigParser
from redbot.formatter import find_formatter
from redbot.resource import HttpResource
config = ConfigParser()
config.read_dict({"redbot": {"enable_local_access": "True"}})
resource = HttpResource(config["redbot"])
resource.set_request(sys.argv[1], headers=[("Cookie", sys.argv[2])])
formatter = find_formatter("har")(config["redbot"], resource, print, {})
formatter.bind_resource(resource)
formatter.on("formatter_done", thor.stop)
resource.check()
thor.run()
"""

# Wapiti's default, and crlf, without ssrf, which needs a server on the internet.
WAPITI_MODULES = "cookieflags,crlf,csp,exec,file,http_headers,permanentxss,redirect,sql,ssl,upload,xss"
# Longer than a busy machine takes. exec looks for commands that make a response late.
WAPITI_TIMEOUT_S = 30


def slowhttptest(service: Service) -> set[str]:
    """Hold 200 slow connections of each kind, and look for times when others get no response."""
    kinds = {"-H": "slow headers", "-B": "slow bodies", "-R": "ranges", "-X": "slow reads"}
    with ThreadPoolExecutor(len(kinds)) as pool:
        answers = dict(zip(kinds.values(), pool.map(partial(availability, service), kinds), strict=True))
    return {f"{kind}: not available" for kind, words in answers.items() if "NO" in words}


def availability(service: Service, kind: str) -> list[str]:
    """Return the words after "service available". It is NO after 15 s without a response."""
    options = ["-c", "200", "-r", "100", "-i", "10", "-l", "30", "-p", "15", "-t", "GET"]
    with service.nginx() as port:
        target = ["-u", f"https://127.0.0.1:{port}/api/session"]
        printed = output([*debian_program("slowhttptest", "slowhttptest"), kind, *options, *target])
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    return re.findall(r"service available:\s+(\w+)", text) or incomplete(text)


def testssl(service: Service) -> set[str]:
    """Run testssl.sh, without its simulation of clients, and without each cipher, which sslyze tries."""
    report = service.home / "testssl.json"
    report.unlink(missing_ok=True)
    checks = ["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers", "-U"]
    options = ["--ip", "127.0.0.1", "--nodns", "none", "--quiet", "--color", "0", "--warnings", "off"]
    with service.nginx() as port:
        command = [*debian_program("testssl", "testssl.sh"), *options, "--sneaky", *checks]
        printed = output([*command, "-oj", str(report), f"{Nginx.HOST}:{port}"])
    entries = json.loads(report.read_text(encoding="utf-8"))
    if not {"TLS1_2", "cipherlist_NULL", "HTTP_status_code", "RC4", "scanTime"} <= {
        entry["id"] for entry in entries
    }:
        incomplete(printed)
    # WARN means that it could not check something, such as by old ciphers that its OpenSSL does not have.
    return {entry["id"] for entry in entries if entry["severity"] not in ("OK", "INFO", "DEBUG", "WARN")}


def wapiti(service: Service) -> set[str]:
    """Attack every route of the OpenAPI document."""
    report = service.home / "wapiti.json"
    report.unlink(missing_ok=True)
    with service.nginx() as port:
        url = f"https://localhost:{port}"
        options = ["--swagger", f"{url}/api/openapi.json", "--scope", "domain", "--module", WAPITI_MODULES]
        options += ["--flush-session", "--no-bugreport", "--timeout", str(WAPITI_TIMEOUT_S)]
        options += ["--max-scan-time", "200", "--max-attack-time", "60"]
        command = [*python_program("wapiti"), "-u", f"{url}/api/docs", *options]
        printed = output([*command, "-f", "json", "-o", str(report)], HOME=str(service.home))
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if found["infos"]["crawled_pages_nbr"] <= 30:
        incomplete(printed)
    return {
        f"{kind}: {problem['info']}"
        for kind, problems in [*found["vulnerabilities"].items(), *found["anomalies"].items()]
        for problem in problems
        if kind != "Resource consumption"  # a request that timed out
    }


def lighthouse(service: Service) -> set[str]:
    """Run lighthouse on the first page of the Vue app, without its timings."""
    report = service.home / "lighthouse.json"
    report.unlink(missing_ok=True)
    build(service.pages.dist, spotify_url="http://127.0.0.1:1")
    options = ["--quiet", "--output=json", f"--output-path={report}", "--max-wait-for-load=60000"]
    categories = "--only-categories=accessibility,best-practices,seo"
    flags = f"--chrome-flags={' '.join(['--headless', *FLAGS])}"
    command = [*node_program("lighthouse"), f"{service.pages.origin}/sign-in", *options, categories, flags]
    printed = output(command, CHROME_PATH=chromium_path())
    if not report.exists():
        incomplete(printed)
    result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    scores = {name: audit["score"] for name, audit in result["audits"].items() if audit["score"] is not None}
    if "runtimeError" in result or len(scores) < 30:
        incomplete(printed)
    return {name for name, score in scores.items() if score < 0.9}


def redbot(service: Service) -> set[str]:
    """Run REDbot, which also sends conditional and partial requests, on all pages, signed in."""
    with service.nginx() as port, ThreadPoolExecutor(4) as pool:
        # REDbot finds localhost in no DNS.
        url = f"https://127.0.0.1:{port}"
        document = requests.get(f"http://127.0.0.1:{service.port}/api/openapi.json", timeout=LONG).json()
        listed = [path for path, operations in document["paths"].items() if "get" in operations]
        pages = [*(re.sub("[{}]", "", path) for path in listed), *PAGES]
        return set().union(*pool.map(partial(visit, service.cookie, url), pages))


def visit(cookie: str, url: str, page: str) -> set[str]:
    """Run REDbot on a page."""
    interpreter, _ = python_program("redbot")
    printed = output([interpreter, "-c", REDBOT, url + page, cookie])
    [entry] = json.loads(printed)["log"]["entries"] or incomplete(printed)
    return {
        f"{page}: {note['note_id']}"
        for parent in entry["_red_messages"]
        for note in [parent, *parent.get("subnotes", [])]
        if note["level"] in ("WARN", "BAD") and not note["note_id"].startswith("STATUS_")
    }


def sslyze(service: Service) -> set[str]:
    """Compare TLS with Mozilla's intermediate configuration."""
    options = ["--mozilla_config=intermediate", "--sni", Nginx.HOST]
    with service.nginx() as port:
        text = output([*python_program("sslyze"), *options, f"127.0.0.1:{port}"])
    _, _, verdict = text.partition("COMPLIANCE AGAINST")
    if not re.search(r"OK - Compliant|FAILED - Not compliant", verdict):
        incomplete(text)
    return set(re.findall(r"^ +\* (\w+): ", verdict, re.MULTILINE))


def incomplete(printed: str) -> Any:
    """Raise Incomplete, with the end of what a scanner printed."""
    raise Incomplete(printed.strip()[-500:] or "it printed nothing")


# The longest come first.
SCANNERS: dict[str, Callable[[Service], set[str]]] = {
    "slowhttptest": slowhttptest,
    "testssl": testssl,
    "wapiti": wapiti,
    "lighthouse": lighthouse,
    "redbot": redbot,
    "sslyze": sslyze,
}
