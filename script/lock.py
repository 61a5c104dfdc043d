"""Re-lock all of Pipfile, and leave no package index's address in the lock file."""

import json
import re
import sys

from script.bootstrap import LOCK_FILE, BootstrapError, at_work, install_pipenv, run_pipenv, say


def main() -> None:
    """Write Pipfile.lock anew, or say why not and exit 1."""
    try:
        with at_work():
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
