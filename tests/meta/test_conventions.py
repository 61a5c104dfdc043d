"""Conventions that hold for every route, setting, log event, and document."""

import ast
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.errors import BacklineError
from app.web import problems
from app.web.access import Access
from config import Config
from tests.conftest import start
from tests.helpers.servers import Unavailable

ROOT = Path(__file__).resolve().parents[2]

# The routes of the API, by access rule. Add every new route here.
OPEN = {
    "POST /api/register",
    "POST /api/login",
    "POST /api/logout",
    "POST /api/password-reset",
    "PUT /api/password-reset",
    "PUT /api/email-verification",
    "PUT /api/email-change",
    "GET /api/session",
    "GET /.well-known/jwks.json",
    "POST /api/oauth/device_authorization",
    "POST /api/oauth/token",
    "GET /api/spotify/authorize",
    "GET /api/spotify",
    "DELETE /api/spotify",
    "GET /api/spotify/token",
    "GET /api/openapi.json",
    "GET /api/docs",
    "GET /api/docs/start.js",
    "GET /api/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>",
    "GET /api/spotify/v1/<path:path>",
    "POST /api/spotify/v1/<path:path>",
    "PUT /api/spotify/v1/<path:path>",
    "DELETE /api/spotify/v1/<path:path>",
    "GET /v1/<path:path>",
    "POST /v1/<path:path>",
    "PUT /v1/<path:path>",
    "DELETE /v1/<path:path>",
    "GET /livez",
    "GET /metrics",
    "GET /operator",
    "GET /operator/style.css",
    "GET /operator/update.js",
    "GET /readyz",
}
SIGNED_IN = {
    "GET /api/user",
    "PATCH /api/user",
    "DELETE /api/user",
    "PUT /api/user/password",
    "GET /api/user/sessions",
    "DELETE /api/user/sessions",
    "DELETE /api/user/sessions/<string:session_id>",
    "GET /api/user/tokens",
    "POST /api/user/tokens",
    "DELETE /api/user/tokens/<int:token_id>",
    "GET /api/user/export",
    "GET /api/spotify/app",
    "PUT /api/spotify/app",
    "DELETE /api/spotify/app",
    "GET /api/user/devices/<string:user_code>",
    "POST /api/user/devices/<string:user_code>",
    "POST /api/email-verification",
    "POST /api/session/jwt",
}


def routes(app: Flask) -> dict[str, Access | None]:
    return {
        f"{method} {rule.rule}": getattr(app.view_functions[rule.endpoint], "access", None)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_every_route_declares_who_may_call_it(app: Flask) -> None:
    assert [route for route, access in routes(app).items() if access is None] == []


def test_routes_have_the_expected_access_rules(app: Flask) -> None:
    found = routes(app)

    assert {route for route, access in found.items() if access is Access.ANYONE} == OPEN
    assert {route for route, access in found.items() if access is Access.SIGNED_IN} == SIGNED_IN


class Recorder(dict[str, str]):
    """An environment that records which variables are read."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


def test_documented_settings_are_exactly_those_that_are_read(env: dict[str, str]) -> None:
    environment = Recorder(env)
    Config.from_env(environment)
    text = (ROOT / ".env.example").read_text(encoding="utf-8")

    documented = set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", text, re.MULTILINE))

    assert documented == environment.asked - {"FLASK_RUN_FROM_CLI"}


def test_environment_is_read_in_one_place() -> None:
    sources = [*(ROOT / "app").rglob("*.py"), ROOT / "wsgi.py"]

    assert [
        path.name for path in sources if re.search(r"os\.(environ|getenv)", path.read_text(encoding="utf-8"))
    ] == []


def test_application_does_not_import_the_sandbox() -> None:
    sources = [*(ROOT / "app").rglob("*.py"), ROOT / "wsgi.py", ROOT / "config.py"]
    importing = re.compile(r"^\s*(from|import) sandbox", re.MULTILINE)

    assert [path.name for path in sources if importing.search(path.read_text(encoding="utf-8"))] == []


def test_application_does_not_use_the_session_that_no_one_closes() -> None:
    found = [path for path in (ROOT / "app").rglob("*.py") if re.search(r"\bdb\.session\b", path.read_text())]

    assert [path.name for path in found if path.name != "database.py"] == []


def test_no_file_names_a_package_registry(app: Flask) -> None:
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.", "npm" + r"js\."]))
    for name in ("Pipfile", "Pipfile.lock", "README.md", "pyproject.toml"):
        assert not hosts.search((ROOT / name).read_text(encoding="utf-8")), name


def test_openapi_document_is_valid_and_covers_every_route(app: Flask, client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json

    OpenAPIV31SpecValidator(document).validate()
    documented = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if method in ("get", "post", "put", "patch", "delete")
    }
    paths = (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) for route in routes(app) if "/docs" not in route)
    api_paths = {path for path in paths if "/api/" in path or "/v1/" in path}
    assert documented == api_paths - {"GET /api/openapi.json"}


def test_documented_errors_are_problem_documents(client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json
    for path, operations in document["paths"].items():
        if path.startswith(("/api/spotify/v1/", "/v1/")):
            continue  # there they are Spotify's as well
        for method, operation in operations.items():
            if method == "parameters":
                continue
            for status, found in operation["responses"].items():
                named = found.get("$ref", "").rsplit("/", 1)[-1]
                response = document["components"]["responses"][named] if named else found
                if status == "default" or int(status) >= 400:
                    is_oauth = path.startswith("/api/oauth/") and status not in ("default", "403")
                    expected = "application/json" if is_oauth else "application/problem+json"
                    assert list(response["content"]) == [expected], (path, method, status)


def test_every_problem_type_is_complete() -> None:
    assert set(BacklineError.__subclasses__()) == problems.PROBLEM_TYPES.keys()
    kinds = problems.PROBLEM_TYPES.values()
    assert len({(kind.slug, kind.status) for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert 400 <= kind.status < 600
        assert re.fullmatch(r"[a-z-]+", kind.slug)
        assert kind.title
        assert kind.detail.endswith(".")


def test_docs_page_loads_only_from_this_server(client: FlaskClient) -> None:
    page = client.get("/api/docs")

    assert page.status_code == 200
    assert page.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    found = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert [url for url in found if not url.startswith(("/api/docs/", "data:"))] == []
    for url in found:
        if url.startswith("/"):
            with client.get(url) as asset:
                assert asset.status_code == 200


class Missing:
    """A service that cannot run on this machine."""

    def __enter__(self) -> None:
        raise Unavailable("mariadbd is not installed: apt-get install mariadb-server")

    def __exit__(self, *_: object) -> None:
        pass


def test_missing_service_skips_a_test_and_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        monkeypatch.setenv("CI", "")
        with pytest.raises(pytest.skip.Exception, match="apt-get install mariadb-server"):
            start(stack, Missing())
        monkeypatch.setenv("CI", "true")
        with pytest.raises(pytest.fail.Exception, match="apt-get install mariadb-server"):
            start(stack, Missing())


# The log handler reports its own problems with `_record`.
LOGS = re.compile(r"_record|(?:self\.)?log\.(?:debug|info|warning|error|exception|critical)")


def logged_events() -> set[str]:
    """Return the names of all events that the application logs."""
    found: set[str] = set()
    for path in [*(ROOT / "app").rglob("*.py"), ROOT / "deploy" / "worker.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and LOGS.fullmatch(ast.unparse(node.func)):
                [event, *_] = node.args
                assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: events must be constants"
                found.add(str(event.value))
    return found


@pytest.mark.requirement("J3")
def test_documented_log_events_are_exactly_those_that_are_logged() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("## Log events")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]

    documented = set(re.findall(r"`(\w+)`", " ".join(rows)))

    assert documented == logged_events()


def test_every_requirement_is_marked_in_the_files_that_the_page_lists() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*([A-M]\d+)\*\* \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    wanted = {"A": 8, "B": 10, "C": 7, "D": 12, "G": 3, "H": 6, "I": 3, "J": 4, "K": 6, "L": 4, "M": 8}

    assert [name for name, _ in rows] == [
        f"{letter}{number}" for letter, count in wanted.items() for number in range(1, count + 1)
    ]
    for name, places in rows:
        files = re.findall(r"`([\w/.]+\.py)`", places)
        assert files, name
        for file in files:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f'pytest.mark.requirement("{name}")' in source, (name, file)


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_document_names_existing_tests_and_modules(document: Path) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", document.read_text(encoding="utf-8")))
    folders = (ROOT, ROOT / "tests", ROOT / "app")
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []
