"""The build: types that match the API, a lock file without hosts, and a strict policy."""

import json
import re
from pathlib import Path

import pytest

from script.openapi import document
from tests.conftest import cannot_run
from tests.helpers.node import install, run
from tests.helpers.servers import Unavailable
from tests.spa.pages import APP, CLIENT


def test_types_match_the_openapi_document(tmp_path: Path) -> None:
    """To update them: script/openapi > openapi.json, then npm run types -- openapi.json."""
    try:
        install(APP)
    except Unavailable as error:
        cannot_run(error)
    (tmp_path / "openapi.json").write_text(document(), encoding="utf-8")
    run(APP, "npx", "openapi-typescript", str(tmp_path / "openapi.json"), "-o", str(tmp_path / "types.ts"))
    assert (tmp_path / "types.ts").read_text() == (CLIENT / "types/openapi.d.ts").read_text()


# Prints the problems that Redocly's validator finds in a document.
VALIDATE = """
const { createConfig, lintFromString } = require("@redocly/openapi-core");
const source = require("fs").readFileSync(process.argv[1], "utf-8");
createConfig({ extends: ["minimal"], rules: { struct: "error", "no-invalid-media-type-examples": "error" } })
  .then((config) => lintFromString({ source, config }))
  .then((found) => console.log(JSON.stringify(found.map(({ ruleId, message }) => `${ruleId}: ${message}`))));
"""


def test_openapi_document_passes_a_second_validator(tmp_path: Path) -> None:
    """The first is openapi-spec-validator (tests/meta), the second generates the app's types."""
    try:
        install(APP)
    except Unavailable as error:
        cannot_run(error)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(document(), encoding="utf-8")
    bad.write_text(document().replace('"operationId":', '"operation":'), encoding="utf-8")

    assert json.loads(run(APP, "node", "-e", VALIDATE, str(good))) == []
    assert json.loads(run(APP, "node", "-e", VALIDATE, str(bad))) != []


def test_lock_file_names_no_registry() -> None:
    packages = json.loads((APP / "package-lock.json").read_text())["packages"]
    assert packages.pop("node_modules/backline") == {"resolved": "../../clients/javascript", "link": True}
    assert not any("resolved" in package for package in packages.values())
    assert all("integrity" in package for path, package in packages.items() if "node_modules/" in path)


@pytest.fixture
def policy(dist: Path) -> dict[str, str]:
    page = (dist / "index.html").read_text().replace("&#39;", "'")
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found
    assert "<style" not in page
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    return {name: rest for name, _, rest in (part.strip().partition(" ") for part in found[1].split(";"))}


def test_policy_allows_only_the_apps_own_scripts(policy: dict[str, str]) -> None:
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"].split() == ["'self'", "http://127.0.0.1:5000"]
    assert "unsafe" not in " ".join(policy.values())


def test_sources_use_no_browser_storage() -> None:
    for source in [*(APP / "src").rglob("*"), *(CLIENT / "src").rglob("*")]:
        if source.is_file():
            text = source.read_text()
            for store in (
                "localStorage",
                "sessionStorage",
                "indexedDB",
                "document.cookie",
                "v-html",
                "innerHTML",
            ):
                assert store not in text, (source, store)
