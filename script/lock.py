"""Locks the packages of Pipfile, without naming a package index. Run by script/lock."""

import json
import re
import sys

from script.bootstrap import LOCK_FILE, BootstrapError, exclusive, install_pipenv, run_pipenv, say


def main() -> None:
    """Write Pipfile.lock, or say why not and exit 1."""
    try:
        with exclusive():
            install_pipenv()
            say("Locking all categories of Pipfile; this takes a minute.")
            run_pipenv("lock")
            text = without_index(LOCK_FILE.read_text(encoding="utf-8"))
            LOCK_FILE.write_text(text, encoding="utf-8")
    except BootstrapError as error:
        sys.exit(str(error))
    if url := re.search(r"https?://[^\"\s]+", text):
        sys.exit(f"Pipfile.lock still names a URL, {url[0]}: no package may come from one.")
    say("Pipfile.lock is written. Run script/bootstrap to install it.")


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
