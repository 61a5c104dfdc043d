"""Writes software bills of materials (SBOM) in the format CycloneDX. Run by script/sbom."""

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from app.version import __version__
from script.audit_programs import AUDIT_VENV, audit_command
from script.bootstrap import (
    ROOT,
    BootstrapError,
    exclusive,
    install_apart,
    locked_packages,
)
from script.licenses import SECTIONS, npm_packages, production_packages

# What the bill is about, as cyclonedx-py reads it.
ABOUT = '[project]\nname = "backline"\nversion = "{version}"\nlicense = "MIT"\n'


def main() -> None:
    """Write both files to the directory in the arguments, or say why not and exit 1."""
    directory = Path(sys.argv[1])
    try:
        with exclusive():
            install_apart("audit", AUDIT_VENV)
        bills = {"backline.cdx.json": python_bill(), "vue-spa.cdx.json": npm_bill()}
        for name, bill in bills.items():
            (directory / name).write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
            print(f"{directory / name}: {len(bill['components'])} packages")
    except (BootstrapError, OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None)
        sys.exit(f"{error}\n{output}" if output else str(error))


def python_bill() -> dict[str, Any]:
    """Return what cyclonedx-py finds in .venv for production, with locked hashes."""
    command = [
        *audit_command("cyclonedx-py"),
        "environment",
        "--sv",
        "1.6",
        "--no-validate",
        "--pyproject",
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as about:
        about.write(ABOUT.format(version=__version__))
        about.flush()
        bill = run([*command, about.name, str(ROOT / ".venv/bin/python")])
    wanted = production_packages()
    kept = [found for found in bill["components"] if canonicalize_name(found["name"]) in wanted]
    locked = {
        canonicalize_name(name): package
        for section in SECTIONS
        for name, package in locked_packages(section).items()
    }
    for component in kept:
        hashes = locked[canonicalize_name(component["name"])]["hashes"]
        # One for each file of the release: a component has only one of them.
        component["properties"] = [{"name": "backline:locked-hash", "value": digest} for digest in hashes]
    root = bill["metadata"]["component"]["bom-ref"]
    references = {root} | {component["bom-ref"] for component in kept}
    graph = [
        {**node, "dependsOn": sorted(references.intersection(node.get("dependsOn", [])))}
        for node in bill["dependencies"]
        if node["ref"] in references
    ]
    return {**bill, "components": kept, "dependencies": graph}


def npm_bill() -> dict[str, Any]:
    """Return the packages in the lock file of the Vue app, without those that only build it.

    `npm sbom` (npm 11) leaves out Vue itself, because it is also a peer dependency of other packages.
    """
    packages = npm_packages()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "backline-vue-spa", "version": __version__}
        },
        "components": [npm_component(name, package) for name, package in packages.items()],
        "dependencies": [
            {"ref": name, "dependsOn": sorted(packages.keys() & package.get("dependencies", {}).keys())}
            for name, package in packages.items()
        ],
    }


def npm_component(name: str, package: dict[str, Any]) -> dict[str, Any]:
    """Return a package in CycloneDX's format. npm writes hashes as `sha512-` and base64."""
    content = base64.b64decode(package["integrity"].removeprefix("sha512-")).hex()
    return {
        "type": "library",
        "bom-ref": name,
        "name": name,
        "version": package["version"],
        "licenses": [{"expression": package["license"]}] if "license" in package else [],
        "purl": f"pkg:npm/{name.replace('@', '%40')}@{package['version']}",
        "hashes": [{"alg": "SHA-512", "content": content}],
    }


def run(command: list[str]) -> dict[str, Any]:
    """Run a command, and return the JSON that it prints."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
