"""Re-lock pipenv and all of Pipfile, and leave no package index's address in either file."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from script.bootstrap import (
    LOCK_FILE,
    PIPENV_REQUIREMENTS,
    PIPENV_VERSION,
    BootstrapError,
    at_work,
    base_python,
    install_pipenv,
    run,
    run_pipenv,
    say,
)

HEADER = "# pipenv and what it needs, for script/bootstrap. Written by script/lock.\n"


def main() -> None:
    """Write both files, or say why not and exit 1."""
    try:
        with at_work():
            say(f"Locking pipenv {PIPENV_VERSION}.")
            PIPENV_REQUIREMENTS.write_text(requirements(resolve_pipenv()), encoding="utf-8")
            install_pipenv()
            say("Locking all categories of Pipfile; this takes a minute.")
            run_pipenv("lock")
            text = without_index(LOCK_FILE.read_text(encoding="utf-8"))
    except BootstrapError as error:
        sys.exit(str(error))
    LOCK_FILE.write_text(text, encoding="utf-8")
    address = re.search(r"https?://[^\"\s]+", text)
    if address:
        sys.exit(f"Pipfile.lock still names an address, {address[0]}: no package may come from a URL.")
    say("Pipfile.lock is written. Run script/bootstrap to install it.")


def resolve_pipenv() -> dict[str, Any]:
    """Ask pip what it would install for pipenv into an empty environment. Returns its report.

    Source: https://pip.pypa.io/en/stable/reference/installation-report/
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        run([base_python(), "-m", "venv", folder])
        ask = ["--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
        run([f"{folder}/bin/python", "-m", "pip", "install", *ask, f"pipenv=={PIPENV_VERSION}"])
        resolved: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return resolved


def requirements(report: dict[str, Any]) -> str:
    """Write down what pip reported as a requirements file with hashes.

    Raises:
        BootstrapError: a package has another file for another machine, whose hash is not in the report.
    """
    lines = []
    for package in report["install"]:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        if not package["download_info"]["url"].endswith("-none-any.whl"):
            raise BootstrapError(f"{name} {version} has files for some machines only: add all their hashes.")
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name.lower()}=={version} \\\n    --hash=sha256:{digest}\n")
    return HEADER + "".join(sorted(lines))


def without_index(lock: str) -> str:
    """The lock file with no source, and no package tied to one; otherwise as pipenv writes it."""
    content = json.loads(lock)
    content["_meta"]["sources"] = []
    for name, packages in content.items():
        if name != "_meta":
            for package in packages.values():
                package.pop("index", None)
    return json.dumps(content, indent=4, separators=(",", ": "), sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
