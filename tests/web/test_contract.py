"""The API matches its OpenAPI document: schemathesis sends valid and invalid requests, and checks responses.

All phases of schemathesis run on the app in this process, as a visitor and as a person who has signed in and
connected Spotify. The initial state is restored before each request, so that requests do not depend on each
other. `CONTRACT_EXAMPLES` sets the number of examples per route and phase.

Two checks are disabled:

- `positive_data_acceptance`: a schema cannot express that a username is taken, a password is guessable, or a
  token is unknown. Other tests cover this for each route.
- `ignored_auth`: with an app in this process, schemathesis 4.32 reports its own error, because it passes
  `max_redirects` on to werkzeug. `tests/web/test_access.py` calls every route without a session.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.protocols import Validator
from schemathesis.config import HealthCheck, SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema
from werkzeug.test import TestResponse

from app.infra.database import writing
from app.models import AccessToken, GrantState
from app.web.access import Access
from tests.helpers.devices import approve, device_path, poll
from tests.helpers.flows import PASSWORD, connect, create_token, register, send_callback, start_authorization
from tests.helpers.mail_server import CHANGE_REQUESTED, CHANGE_UNDONE, RESET, VERIFY, Mailbox, token_in
from tests.helpers.route_matrix import (
    Route,
    Snapshot,
    body_schema,
    documented,
    every_route,
    operation,
    wait_for_background_work,
)
from tests.helpers.sandbox_client import SandboxClient

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.slow,
]

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "8"))
WITHOUT_EFFECT = {400, 403, 404, 405, 413, 415}  # other tests show this
PHASES = {"examples", "coverage", "fuzzing", "stateful"}


class Run:
    """Runs schemathesis, and collects its requests and failures."""

    def __init__(self, schema: BaseSchema) -> None:
        self.requests: Counter[str] = Counter()
        self.phases: set[str] = set()
        self.wrong: dict[tuple[str, str, str], str] = {}
        self.statuses: Counter[int] = Counter()
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                self._read(event)
            elif isinstance(event, events.NonFatalError):
                self.wrong["error", event.label, type(event.value).__name__] = str(event.value)

    def _read(self, scenario: events.ScenarioFinished) -> None:
        recorder = scenario.recorder
        for case_id, interaction in recorder.interactions.items():
            self.phases.add(scenario.phase.value)
            self.requests[recorder.cases[case_id].value.operation.label] += 1
            if interaction.response is not None:
                self.statuses[interaction.response.status_code] += 1
        for checks in recorder.checks.values():
            for check in checks:
                if (info := check.failure_info) is not None:
                    kind = (check.name, recorder.label, type(info.failure).__name__)
                    self.wrong.setdefault(kind, f"{info.failure.message}\n{info.code_sample}")


@pytest.fixture
def document(app: Flask) -> dict[str, Any]:
    """The document without `default` responses, which would match anything."""
    found = documented(app)
    for operations in found["paths"].values():
        for members in operations.values():
            if isinstance(members, dict):
                members["responses"].pop("default", None)
    return found


def contract(app: Flask, document: dict[str, Any]) -> BaseSchema:
    """Return a schema that restores the current state of the app before each request."""
    before, last = Snapshot(app), [200]

    def from_the_initial_state(
        environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        def keep_status(status: str, *arguments: Any) -> Any:
            last[0] = int(status[:3])
            return start_response(status, *arguments)

        if last[0] not in WITHOUT_EFFECT:
            wait_for_background_work(app)
            before.restore()
        return app(environ, keep_status)

    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig(seed=1))
    schema.app = from_the_initial_state
    schema.config.suppress_health_check = [HealthCheck.all]  # the machine may be slow
    for phase in ("fuzzing", "stateful"):
        generation = getattr(schema.config.phases, phase).generation
        generation.max_examples, generation.database = EXAMPLES, "none"
    for disabled in ("positive_data_acceptance", "ignored_auth"):
        getattr(schema.config.checks, disabled).enabled = False
    return schema


# Hypothesis warns that it is slow when it prints a long example.
@pytest.mark.requirement("H1")
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("who", ["visitor", "grace"])
def test_responses_match_the_openapi_document(
    new_client: Callable[[], FlaskClient],
    app: Flask,
    sandbox: SandboxClient,
    document: dict[str, Any],
    who: str,
) -> None:
    register(new_client(), "ada")  # the document uses her name and password in examples
    register(grace := new_client(), "grace")
    connect(grace, sandbox)
    wait_for_background_work(app)
    schema = contract(app, document)
    if who == "grace":
        cookie = grace.get_cookie("backline_session")
        assert cookie is not None
        session_id, token = cookie.value, create_token(grace)

        @schema.auth()
        class SignedIn:
            def get(self, case: object, context: object) -> str:
                return session_id

            def set(self, case: Any, data: str, context: object) -> None:
                case.cookies["backline_session"] = data
                if case.operation.path.startswith("/v1/"):
                    case.headers["Authorization"] = f"Bearer {token}"

    run = Run(schema)

    assert run.wrong == {}
    assert run.phases == PHASES
    assert {f"{route}" for route in every_route(app) if operation(document, route)} == set(run.requests)
    assert [status for status in run.statuses if status >= 500] == []
    assert {200, 204, 405, 415, 422} <= set(run.statuses)


@pytest.mark.requirement("G2")
def test_response_schemas_require_all_members_and_allow_no_others(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    del schemas["WebApiErrorOut"]  # Spotify's

    assert [name for name, schema in schemas.items() if schema["additionalProperties"] is not False] == []


SECRET = {
    "client_secret",
    "password",
    "password_hash",
    "session_epoch",
    "token_hash",
    "refresh_token",
    "spare_refresh_token",
}
INTERNAL = {"user_id", "key_id", "grant_id", "generation", "attempt_id", "lease_until", "failures", "state"}


@pytest.mark.requirement("G2")
def test_response_schemas_contain_no_secret_or_internal_members(app: Flask, document: dict[str, Any]) -> None:
    bodies = [body_schema(document, route) for route in every_route(app)]
    responses = {name: each for name, each in document["components"]["schemas"].items() if each not in bodies}

    # The state of an application is for its owner to see.
    of_applications = ("ExportedSpotifyApp", "SpotifyAppOut")
    shown = {name: {*each["properties"]} - {"state"} for name, each in responses.items()}
    shown |= {name: {*each["properties"]} for name, each in responses.items() if name not in of_applications}
    assert [name for name, members in shown.items() if members & (SECRET | INTERNAL)] == []
    assert [name for name, each in responses.items() if "access_token" in each["properties"]] == [
        "DeviceTokenOut",
        "TokenOut",
    ]


def test_document_lists_what_every_request_needs(app: Flask, document: dict[str, Any]) -> None:
    for route in every_route(app):
        if not (found := operation(document, route)):
            continue
        visitor_rule: list[dict[str, Any]] = [] if route.access is Access.SIGNED_IN else [{}]
        [*others] = (scheme for scheme in found["security"] if "bearerAuth" not in scheme)
        reads_cookie = not (route.is_oauth or route.is_bearer_only)
        assert others == ([*visitor_rule, {"session": []}] if reads_cookie else []), route
        header = {"$ref": "#/components/parameters/RequestedWith"}
        needs_header = reads_cookie and (route.writes or route.is_gateway)
        assert (header in found.get("parameters", [])) is needs_header, route
        statuses = set(found["responses"])
        assert ("401" in statuses) >= (route.access is Access.SIGNED_IN or route.is_bearer_only), route
        assert ("403" in statuses) >= route.writes, route
        readable = {"400", "413"} | (set() if route.is_oauth else {"415"})
        readable |= set() if route.is_gateway or route.is_oauth else {"422"}
        assert (readable <= statuses) >= ("requestBody" in found), route
        assert ("404" in statuses) >= ("{" in route.template), route
        assert "503" in statuses, route


class Reader:
    """Compares responses with the document, and records which successful ones it has seen."""

    def __init__(self, document: dict[str, Any], routes: list[Route]) -> None:
        self._document, self._routes = document, routes
        self.seen: set[tuple[str, int]] = set()

    def read(self, response: TestResponse) -> TestResponse:
        method, path = response.request.method, response.request.path
        [route] = [
            route for route in self._routes if route.method == method and _matches(route.template, path)
        ]
        result = operation(self._document, route)["responses"][str(response.status_code)]
        if "$ref" in result:
            result = self._document["components"]["responses"][result["$ref"].rsplit("/", 1)[-1]]
        if "content" in result:
            [(media_type, content)] = result["content"].items()
            assert response.content_type == media_type, route
            self._validator(content["schema"]).validate(response.json)
        else:
            assert response.status_code >= 300 or response.data == b"", route
        for name in result.get("headers", {}):
            assert name in response.headers, (route, name)
        self.seen.add((str(route), response.status_code))
        return response

    def successes(self) -> set[tuple[str, int]]:
        return {
            (str(route), int(status))
            for route in self._routes
            for status in operation(self._document, route).get("responses", {})
            if int(status) < 400
        }

    def _validator(self, schema: dict[str, Any]) -> Validator:
        whole = {**schema, "components": self._document["components"]}
        return Draft202012Validator(whole, format_checker=FormatChecker())


def _matches(template: str, path: str) -> bool:
    parts, found = template.split("/"), path.split("/")
    return len(parts) == len(found) and all(
        part == there or part.startswith("{") for part, there in zip(parts, found, strict=True)
    )


@pytest.mark.settings(SPOTIFY_APPS="both")
@pytest.mark.requirement("G2")
def test_successful_responses_contain_only_documented_members(
    mailbox: Mailbox, app: Flask, document: dict[str, Any], sandbox: SandboxClient
) -> None:
    """Covers every successful response in the document. Add every new route here."""
    reader = Reader(document, [route for route in every_route(app) if not route.is_gateway])
    read, client = reader.read, app.test_client()
    page = {"Accept": "text/html"}

    read(client.get("/api/session"))
    new = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    read(client.post("/api/register", json=new))
    read(client.post("/api/email-verification"))
    token = token_in(mailbox.wait_for("ada@example.com", VERIFY))
    read(client.put("/api/email-verification", json={"token": token}))
    read(client.get("/api/user"))
    read(client.patch("/api/user", json={"username": "countess"}))
    change = {"email": "new@example.com", "current_password": PASSWORD}
    read(client.patch("/api/user", json=change))
    read(client.get("/api/spotify/authorize", headers=page))
    read(send_callback(client, sandbox.consent(start_authorization(client))))
    read(client.get("/api/spotify/authorize", headers=page))
    read(client.post("/api/session/jwt", json={"audience": "https://stats.example.com"}))
    for path in (
        "/api/session",
        "/api/spotify",
        "/api/spotify/token",
        "/api/user/export",
        "/api/user/sessions",
    ):
        read(client.get(path))
    read(client.delete("/api/spotify"))
    read(client.get("/api/spotify"))
    own = sandbox.create_applications()[0]
    new_app = {name: own[name] for name in ("client_id", "client_secret")}
    read(client.put("/api/spotify/app", json=new_app))
    read(client.get("/api/spotify/app"))
    read(client.get("/api/user/export"))
    read(client.delete("/api/spotify/app"))
    new_token = {"name": "x", "rights": ["spotify:read"], "current_password": PASSWORD}
    created = read(client.post("/api/user/tokens", json=new_token))
    read(client.get("/api/user/tokens"))
    read(client.delete(created.headers["Location"]))
    device = {"client_name": "my-cli", "scope": "spotify:read"}
    started = read(client.post("/api/oauth/device_authorization", data=device)).json
    read(poll(client, started))
    read(client.get(device_path(started)))
    read(approve(client, started))
    read(poll(client, started))
    changed = {"current_password": PASSWORD, "new_password": f"{PASSWORD} indeed"}
    read(client.put("/api/user/password", json=changed))
    read(client.delete("/api/user/sessions"))
    read(client.delete(f"/api/user/sessions/{'0' * 32}"))
    read(client.post("/api/logout"))
    read(client.post("/api/password-reset", json={"email": "ada@example.com"}))
    token = token_in(mailbox.wait_for("ada@example.com", RESET))
    read(client.put("/api/password-reset", json={"token": token, "password": PASSWORD}))
    token = token_in(mailbox.wait_for("ada@example.com", CHANGE_REQUESTED))
    read(client.put("/api/email-change", json={"token": token, "decision": "undo"}))
    token = token_in(mailbox.wait_for("ada@example.com", CHANGE_UNDONE))
    read(client.put("/api/password-reset", json={"token": token, "password": PASSWORD}))
    read(client.post("/api/login", json={"login": "countess", "password": PASSWORD}))
    read(client.delete("/api/user", json={"password": PASSWORD}))

    assert reader.successes() - reader.seen == set()


@pytest.mark.requirement("G2")
def test_responses_in_every_grant_state_contain_only_documented_members(
    client: FlaskClient, app: Flask, document: dict[str, Any], sandbox: SandboxClient
) -> None:
    reader = Reader(document, every_route(app))
    register(client, "ada")
    connect(client, sandbox)

    for state in GrantState:
        with app.app_context(), writing() as db:
            ended = {"access_token": None} if state is GrantState.REAUTHORIZATION_REQUIRED else {}
            db.execute(sa.update(AccessToken).values(state=state, **ended))
        for path in ("/api/session", "/api/spotify", "/api/spotify/token", "/api/user/export"):
            reader.read(client.get(path))
        reader.read(client.get("/api/spotify/authorize"))

    assert ("GET /api/spotify/token", 409) in reader.seen
