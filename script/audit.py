"""Checks dependencies, code, and nginx's configuration for known security problems. Run by script/audit."""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from script import licenses
from script.audit_programs import AUDIT_VENV, audit_command
from script.bootstrap import (
    ROOT,
    BootstrapError,
    exclusive,
    install_apart,
    locked_requirements,
)
from script.demo import APP

CODE = ["app", "clients/python/src", "deploy", "migrations", "sandbox", "script", "config.py", "wsgi.py"]
# What gixy reports about deploy/nginx.conf. docs/scanners.md says why each is right as it is.
EXPLAINED = {"add_header_redefinition": 2, "missing_resolver": 1}
# What detect-secrets looks for only outside of tests, whose passwords and keys are nobody's.
IN_TESTS = ("Base64HighEntropyString", "BasicAuthDetector", "HexHighEntropyString", "JwtTokenDetector")
# Not used: ruff reports passwords in code, and the others are about services that nothing here uses.
UNUSED = ["KeywordDetector", "ArtifactoryDetector", "AzureStorageKeyDetector", "CloudantDetector"]
UNUSED += ["DiscordBotTokenDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "IPPublicDetector"]
UNUSED += ["MailchimpDetector", "SendGridDetector", "SoftlayerDetector", "SquareOAuthDetector"]
UNUSED += ["TelegramBotTokenDetector", "TwilioKeyDetector", "GitLabTokenDetector", "OpenAIDetector"]
GENERATED = r"^(benchmarks/results/|app/auth/common_passwords\.txt|.*Pipfile\.lock|.*package-lock\.json)"
LIMIT_S = 120


@dataclass(frozen=True)
class Result:
    """What a check found."""

    outcome: Literal["ok", "FAILED", "not checked"]
    text: str


def main() -> None:
    """Run the checks in the arguments and print their results. Exit 1 if one failed."""
    parser = argparse.ArgumentParser(prog="script/audit")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("checks", nargs="*", metavar="CHECK", choices=[[], *CHECKS])
    options = parser.parse_args()
    try:
        with exclusive():
            install_apart("audit", AUDIT_VENV)
    except BootstrapError as error:
        show("programs", Result("not checked", str(error)))
        sys.exit(options.strict)
    failures = {"FAILED", "not checked"} if options.strict else {"FAILED"}
    failed = False
    for name in options.checks or CHECKS:
        for result in CHECKS[name]():
            show(name, result)
            failed |= result.outcome in failures
    sys.exit(failed)


def show(name: str, result: Result) -> None:
    """Print a result, with further lines indented."""
    text = result.text.strip().replace("\n", "\n    ")
    print(f"{result.outcome:11}  {name:10}  {text}", flush=True)


def check_licenses() -> list[Result]:
    """Compare the licenses with those that are allowed."""
    python, npm = licenses.python_licenses(), licenses.npm_licenses()
    missing = [f"{name}: not installed" for name in licenses.production_packages() - python.keys()]
    found = licenses.problems(python) + licenses.problems(npm)
    document = licenses.DOCUMENT.read_text(encoding="utf-8")
    tables = {"Python": licenses.table(python), "npm": licenses.table(npm)}
    if not missing and not all(table in document for table in tables.values()):
        rows = "".join(f"\n{name}:\n{table}" for name, table in tables.items())
        found.append(f"docs/licenses.md is not up to date. Its tables should be:{rows}")
    if found:
        return [Result("FAILED", "\n".join(found))]
    if missing:
        return [Result("not checked", "\n".join(missing))]
    return [Result("ok", f"{len(python)} Python packages, {len(npm)} npm packages")]


def check_advisories() -> list[Result]:
    """Ask the registries for known vulnerabilities of what production installs."""
    return [python_advisories(), npm_advisories()]


def python_advisories() -> Result:
    """Run pip-audit."""
    requirements = AUDIT_VENV / "audited.txt"
    requirements.write_text(locked_requirements(*licenses.SECTIONS))
    # Without --strict, it skips packages that it cannot ask for, and reports success.
    options = ["--require-hashes", "--disable-pip", "--strict", "--progress-spinner=off", "--format=json"]
    status, output, errors = run("pip-audit", "--requirement", str(requirements), *options)
    return judge_pip_audit(status, output, errors)


def judge_pip_audit(status: int, output: str, errors: str) -> Result:
    """Interpret what pip-audit printed. If it skipped a package, that is no success."""
    try:
        dependencies = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Result("not checked", f"pip-audit: {last_line(errors)}")
    found = [
        f"{package['name']} {package['version']}: {problem['id']}"
        for package in dependencies
        for problem in package.get("vulns", [])
    ]
    if found:
        return Result("FAILED", "\n".join(found))
    skipped = [package["name"] for package in dependencies if "skip_reason" in package]
    if skipped or status != 0 or not dependencies:
        return Result("not checked", f"pip-audit: {', '.join(skipped) or last_line(errors)}")
    return Result("ok", f"pip-audit: {len(dependencies)} packages without a known vulnerability")


def npm_advisories() -> Result:
    """Run npm audit for what is part of the built Vue app."""
    command = ["npm", "audit", "--omit=dev", "--json", "--prefix", str(ROOT / APP)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Result("not checked", f"npm audit: {error}")
    return judge_npm_audit(done.stdout)


def judge_npm_audit(output: str) -> Result:
    """Interpret what npm audit printed."""
    try:
        counts = json.loads(output)["metadata"]
        found, packages = counts["vulnerabilities"]["total"], counts["dependencies"]["prod"]
    except (ValueError, KeyError, TypeError):
        return Result("not checked", "npm audit: the registry does not respond to it")
    if found:
        return Result("FAILED", f"npm audit: {found} vulnerabilities; see npm audit --omit=dev in {APP}")
    return Result("ok", f"npm audit: {packages} packages without a known vulnerability")


def check_code() -> list[Result]:
    """Run bandit. ruff has its rules of low severity."""
    status, output, errors = run("bandit", "--quiet", "-ll", "--recursive", *CODE)
    if status != 0:
        return [Result("FAILED", output or errors)]
    return [Result("ok", "bandit: nothing of medium or high severity")]


def check_secrets() -> list[Result]:
    """Run detect-secrets on all files in git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [name for name in done.stdout.split("\0") if name]
    if not files:
        return [Result("not checked", "detect-secrets: this is not a git checkout")]
    tests = [name for name in files if name.startswith("tests/")]
    output = find_secrets([name for name in files if not name.startswith("tests/")])
    output += find_secrets(tests, without=IN_TESTS)
    if output:
        hint = 'If it is no secret, add "# pragma: allowlist secret" to the line.'
        return [Result("FAILED", f"{output}\n{hint}")]
    return [Result("ok", f"detect-secrets: {len(files)} files without credentials")]


def find_secrets(files: list[str], *, without: Iterable[str] = ()) -> str:
    """Return what detect-secrets finds in these files, without some of its detectors."""
    options = [word for name in (*UNUSED, *without) for word in ("--disable-plugin", name)]
    options += ["--exclude-files", GENERATED, "--exclude-secrets", "^(password|[A-Z]+_PASSWORD)$"]
    status, output, errors = run("detect-secrets-hook", "--no-verify", *options, *files)
    return output + errors if status != 0 else ""


def check_nginx() -> list[Result]:
    """Run gixy on nginx's configuration."""
    status, output, errors = run("gixy", "--format=json", "deploy/nginx.conf")
    try:
        found = Counter(re.sub(r".*\.", "", problem["plugin"]) for problem in json.loads(output))
    except (ValueError, KeyError, TypeError):
        return [Result("FAILED", f"gixy exited with {status}: {output}{errors}")]
    if found != EXPLAINED:
        return [Result("FAILED", f"gixy found {dict(found)}, and docs/scanners.md explains {EXPLAINED}")]
    return [Result("ok", f"gixy: nothing but the {sum(found.values())} findings in docs/scanners.md")]


def run(program: str, *arguments: str) -> tuple[int, str, str]:
    """Run one of the locked programs. Return its exit status, output, and errors."""
    command = [*audit_command(program), *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return 1, "", f"{program} took longer than {LIMIT_S} s"
    return done.returncode, done.stdout, done.stderr


def last_line(text: str) -> str:
    """Return the last line of a program's errors."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


CHECKS: dict[str, Callable[[], list[Result]]] = {
    "licenses": check_licenses,
    "advisories": check_advisories,
    "code": check_code,
    "secrets": check_secrets,
    "nginx": check_nginx,
}


if __name__ == "__main__":
    main()
