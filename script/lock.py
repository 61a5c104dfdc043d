"""Locks the packages of Pipfile, without naming a package index. Run by script/lock."""

import json
import re
import sys
from pathlib import Path

from script.bootstrap import (
    LOCK_FILE,
    ROOT,
    BootstrapError,
    base_python,
    exclusive,
    install_pipenv,
    run_pipenv,
    say,
)

# The scanners' own: an update of theirs does not make everyone update .venv.
SCANNERS_LOCK_FILE = ROOT / "tests/scanners/Pipfile.lock"


def main() -> None:
    """Write the lock files, or say why not and exit 1."""
    try:
        with exclusive():
            install_pipenv()
            say("Locking all categories of Pipfile, and the scanners; this takes two minutes.")
            for lock_file in (LOCK_FILE, SCANNERS_LOCK_FILE):
                lock(lock_file)
    except BootstrapError as error:
        sys.exit(str(error))
    say("Pipfile.lock is written. Run script/bootstrap to install it.")


def lock(lock_file: Path) -> None:
    """Write a lock file for the Pipfile beside it.

    Raises:
        BootstrapError: It could not be written, or would name a package index.
    """
    run_pipenv("lock", "--python", base_python(), pipfile=lock_file.with_suffix(""))
    text = without_index(lock_file.read_text(encoding="utf-8"))
    lock_file.write_text(text, encoding="utf-8")
    if url := re.search(r"https?://[^\"\s]+", text):
        raise BootstrapError(f"{lock_file} still names a URL, {url[0]}: no package may come from one.")


def without_index(lock: str) -> str:
    """Remove the package index from a lock file, and keep pipenv's formatting."""
    content = json.loads(lock)
    content["_meta"]["sources"] = []
    for name, packages in content.items():
        for package in packages.values() if name != "_meta" else ():
            package.pop("index", None)
    return json.dumps(content, indent=4, separators=(",", ": "), sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
