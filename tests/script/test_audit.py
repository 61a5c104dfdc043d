"""script/audit and script/sbom: they never report success for what they could not check."""

import json
import re
from pathlib import Path

import pytest

from script import audit, licenses, sbom
from script.audit_programs import AUDIT_VENV
from script.bootstrap import ROOT, BootstrapError, exclusive, install_apart
from tests.conftest import cannot_run
from tests.helpers.servers import Unavailable

pytestmark = pytest.mark.requirement("M8")


@pytest.fixture(scope="module")
def programs() -> None:
    """Install the programs of the audit, if they are not."""
    try:
        with exclusive():
            install_apart("audit", AUDIT_VENV)
    except BootstrapError as error:
        cannot_run(Unavailable(str(error)))


def pip_audit(*dependencies: dict[str, object]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


CLEAN: dict[str, object] = {"name": "flask", "version": "3.1.3", "vulns": []}
SKIPPED: dict[str, object] = {"name": "idna", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE: dict[str, object] = {"name": "redis", "version": "1", "vulns": [{"id": "PYSEC-2026-1"}]}


@pytest.mark.parametrize(
    ("printed", "outcome", "text"),
    [
        ((0, pip_audit(CLEAN), ""), "ok", "1 packages"),
        ((0, pip_audit(CLEAN, SKIPPED), ""), "not checked", "idna"),
        ((0, pip_audit(), ""), "not checked", "nothing"),
        ((1, "", "WARNING: retry\nERROR: Dependency not found on PyPI"), "not checked", "not found"),
        ((1, pip_audit(CLEAN, VULNERABLE, SKIPPED), ""), "FAILED", "redis 1: PYSEC-2026-1"),
    ],
)
def test_packages_that_pip_audit_skipped_are_not_checked(
    printed: tuple[int, str, str], outcome: str, text: str
) -> None:
    result = audit.judge_pip_audit(*printed)
    assert result.outcome == outcome
    assert text in result.text


@pytest.mark.parametrize(
    ("printed", "outcome"),
    [
        ("", "not checked"),
        ('{"error": {"code": "E405"}}', "not checked"),
        ('{"metadata": {"vulnerabilities": {"total": 0}, "dependencies": {"prod": 26}}}', "ok"),
        ('{"metadata": {"vulnerabilities": {"total": 2}, "dependencies": {"prod": 26}}}', "FAILED"),
    ],
)
def test_registry_that_rejects_npm_audit_means_not_checked(printed: str, outcome: str) -> None:
    assert audit.judge_npm_audit(printed).outcome == outcome


def test_advisories_are_not_checked_without_an_index(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, pip-audit skips all packages and reports success."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    assert audit.python_advisories().outcome == "not checked"


def test_licenses_that_are_not_allowed_are_reported() -> None:
    allowed = {"flask": "BSD-3-Clause", "mysqlclient": "GPL-2.0-or-later"}
    assert licenses.problems(allowed) == []
    for unexpected in ("GPL-2.0-or-later", "AGPL-3.0-only", "UNKNOWN", ""):
        [line] = licenses.problems({"flask": unexpected})
        assert line.startswith("flask: ")
    assert len(licenses.problems({"mysqlclient": "AGPL-3.0-only"})) == 1


def test_document_lists_the_licenses_of_all_locked_packages(programs: None) -> None:
    assert [result.outcome for result in audit.check_licenses()] == ["ok"]


def test_nginx_has_only_explained_findings(programs: None) -> None:
    [result] = audit.check_nginx()
    assert result.outcome == "ok", result.text
    explained = (ROOT / "docs/scanners.md").read_text(encoding="utf-8")
    assert all(f"`{finding}`" in explained for finding in audit.EXPLAINED)


def test_new_credentials_are_found(programs: None, tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text('\n\nid = "AKIA' + 'QWERTYUIOPASDFGH"\n')
    (tmp_path / "key.py").write_text('key = "3f9d8c7b6a5e4d3c' + '2b1a0f9e8d7c6b5a"\n')
    files = [str(tmp_path / name) for name in ("notes.py", "key.py")]

    found = audit.find_secrets(files)
    assert "AWS Access Key" in found
    assert "Hex High Entropy String" in found
    found = audit.find_secrets(files, without=audit.IN_TESTS)
    assert "AWS Access Key" in found
    assert "Hex High Entropy String" not in found


def test_bills_list_what_production_installs(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sbom", str(tmp_path)])
    sbom.main()

    bills = [json.loads((tmp_path / name).read_text()) for name in ("backline.cdx.json", "vue-spa.cdx.json")]
    names = [{part["name"].lower().replace("_", "-") for part in bill["components"]} for bill in bills]
    assert {"flask", "redis", "sqlalchemy"} <= names[0] == licenses.production_packages()
    assert names[1] >= {"vue", "vue-router"}
    assert not (names[0] | names[1]) & {"pytest", "mypy", "vite"}
    for bill in bills:
        assert bill["bomFormat"] == "CycloneDX"
        assert all(re.match("pkg:(pypi|npm)/.+@", part["purl"]) for part in bill["components"])
        assert any(node.get("dependsOn") for node in bill["dependencies"])
