"""The licenses of what production installs, and which ones are allowed."""

import json
import subprocess
from typing import Any

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from script.audit_programs import audit_command
from script.bootstrap import ROOT, locked_packages
from script.demo import APP

# What is installed in production: the categories of Pipfile.lock that are not for development.
SECTIONS = ("default", "embedded", "mysql", "mongodb")
DOCUMENT = ROOT / "docs/licenses.md"

# Licenses with no conditions but to keep the notice.
PERMISSIVE = {
    "Apache Software License",
    "Apache-2.0",
    "Apache-2.0 AND BSD-2-Clause",
    "Apache-2.0 OR BSD-2-Clause",
    "Apache-2.0 OR BSD-3-Clause",
    "BSD License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT AND PSF-2.0",
    "MIT License",
    "MIT style",
    "MIT-0",
    "PSF-2.0",
}
# Other licenses of packages that may be used nevertheless. The document says why.
ACCEPTED = {"certifi": "Mozilla Public License 2.0 (MPL 2.0)", "mysqlclient": "GPL-2.0-or-later"}


def production_packages() -> set[str]:
    """Return the names of the locked packages that Python 3.11.3 needs: the same on every Python.

    Older ones need async-timeout, which the document mentions.
    """
    return {
        canonicalize_name(name)
        for section in SECTIONS
        for name, package in locked_packages(section).items()
        if "markers" not in package or Marker(package["markers"]).evaluate({"python_full_version": "3.11.3"})
    }


def python_licenses() -> dict[str, str]:
    """Return the license of each installed package of production, as pip-licenses finds it."""
    command = [*audit_command("pip-licenses"), "--python", str(ROOT / ".venv/bin/python")]
    options = ["--from=mixed", "--format=json", "--with-system"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    wanted = production_packages()
    names = {canonicalize_name(found["Name"]): found["License"] for found in json.loads(done.stdout)}
    return {name: license_ for name, license_ in names.items() if name in wanted}


def npm_packages() -> dict[str, dict[str, Any]]:
    """Return the npm packages that the built Vue app may contain, from its lock file."""
    packages = json.loads((ROOT / APP / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {
        path.rpartition("node_modules/")[2]: package
        for path, package in packages.items()
        if "node_modules/" in path and not package.get("dev") and not package.get("link")
    }


def npm_licenses() -> dict[str, str]:
    """Return the licenses of `npm_packages`."""
    return {name: package.get("license", "UNKNOWN") for name, package in npm_packages().items()}


def problems(licenses: dict[str, str]) -> list[str]:
    """Return a line for each package whose license is not allowed."""
    return [
        f"{name}: {license_} is not allowed (script/licenses.py)"
        for name, license_ in sorted(licenses.items())
        if license_ not in PERMISSIVE and ACCEPTED.get(name) != license_
    ]


def table(licenses: dict[str, str]) -> str:
    """Return the licenses as the rows of a Markdown table."""
    return "".join(f"| {name} | {license_} |\n" for name, license_ in sorted(licenses.items()))
