"""The pages at `/dashboard` for creating and editing applications, after Spotify's developer dashboard."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Blueprint, Response, abort, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from sandbox.applications import (
    DEVELOPMENT,
    EXTENDED,
    MAX_REDIRECT_URIS,
    MAX_USERS,
    QUOTAS,
    Application,
    is_email,
    new_credential,
    problem_with_redirect_uri,
    set_members,
)
from sandbox.context import sandbox
from sandbox.control import reject_cross_site_requests, require_loopback
from sandbox.faults import Fault
from sandbox.people import Person

dashboard = Blueprint("dashboard", __name__, url_prefix="/dashboard")

_MAX_TEXT = 100
_HOUR_S, _WINDOW_S = 3600, 30
_DONE = {
    "created": "The app was created.",
    "deleted": "The app was deleted. Its client id no longer works.",
    "failing": "Done. The app's next calls show the effect.",
    "healed": "The app's calls work again.",
    "added": "The person can now use this app.",
    "removed": "The person can no longer use this app.",
    "rotated": "This app has a new client secret. The old one no longer works.",
    "saved": "Saved.",
}
# What can go wrong with an application, and the fault that does it: the target, the kind, and Retry-After.
_FAULTS: dict[str, tuple[str, tuple[str, str, int | None]]] = {
    "token_rate_limit": (
        "The token endpoint answers 429, Retry-After: 1 hour",
        ("token", "rate_limited", _HOUR_S),
    ),
    "api_rate_limit": (
        "The Web API answers 429, Retry-After: 30 seconds",
        ("api", "rate_limited", _WINDOW_S),
    ),
    "token_outage": ("The token endpoint answers 503", ("token", "envoy_503", None)),
    "api_outage": ("The Web API answers 502", ("api", "json_502", None)),
    "token_timeout": ("The token endpoint does not answer", ("token", "timeout", None)),
}


@dashboard.before_request
def reject_strangers() -> None:
    """Allow loopback callers only, and forms of these pages only."""
    if request.method == "GET":
        require_loopback()
    else:
        reject_cross_site_requests()


def _page(template: str, status: int = 200, **values: Any) -> Response:
    nonce = secrets.token_urlsafe(16)
    done = _DONE.get(request.args.get("done", ""))
    page = render_template(template, nonce=nonce, done=done, max_users=MAX_USERS, **values)
    response = make_response(page, status)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return response


@dashboard.get("")
def list_applications() -> Response:
    """List the applications."""
    state = sandbox()
    owners = {person.account_id: person for person in state.people}
    return _page("dashboard.html", applications=state.applications, owners=owners)


@dashboard.get("/create")
def show_create_form() -> Response:
    """Show an empty form."""
    return _create_page({}, {})


def _create_page(values: dict[str, str], problems: dict[str, str]) -> Response:
    people = sandbox().people.defaults
    return _page(
        "application_new.html", 422 if problems else 200, values=values, problems=problems, people=people
    )


@dashboard.post("/create")
def create() -> AnyResponse:
    """Create an application, or show the form again with what is wrong."""
    state, form = sandbox(), request.form
    members, problems = _read_form()
    owner = state.people.named(form.get("owner", ""))
    if owner is None:
        problems["owner"] = "Choose an owner."
    if form.get("api") != "web":
        problems["api"] = "Choose the Web API."
    if problems or owner is None:
        return _create_page(form.to_dict(), problems)
    application = Application(new_credential(), new_credential(), owner=owner.account_id)
    set_members(application, members)
    state.applications.add(application)
    return _redirect(application, "created")


def _read_form() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the members of the application in the form, and what is wrong with them, by field."""
    name, description = (request.form.get(field, "").strip() for field in ("name", "description"))
    uris = request.form.get("redirect_uris", "").split()
    quota = request.form.get("quota", DEVELOPMENT)
    problems: dict[str, str] = {}
    if not name or len(name) > _MAX_TEXT or not name.isprintable():
        problems["name"] = f"Enter a name of up to {_MAX_TEXT} characters."
    if len(description) > _MAX_TEXT or not description.isprintable():
        problems["description"] = f"Enter up to {_MAX_TEXT} characters on one line."
    if quota not in QUOTAS:
        problems["quota"] = "Choose one."
    if wrong := _problem_with_redirect_uris(uris):
        problems["redirect_uris"] = wrong
    members = {"name": name, "description": description, "redirect_uris": uris, "quota": quota}
    return members, problems


def _problem_with_redirect_uris(uris: list[str]) -> str | None:
    if not uris or len(uris) > MAX_REDIRECT_URIS:
        return f"Enter 1 to {MAX_REDIRECT_URIS} redirect URIs."
    return next((f"{uri}: {problem}" for uri in uris if (problem := problem_with_redirect_uri(uri))), None)


@dashboard.get("/<client_id>")
def show_application(client_id: str) -> Response:
    """Show an application."""
    return _application_page(_application(client_id))


def _application(client_id: str) -> Application:
    application = sandbox().applications.get(client_id)
    if application is None:
        abort(404)
    return application


def _application_page(
    application: Application, values: dict[str, str] | None = None, problems: dict[str, str] | None = None
) -> Response:
    state = sandbox()
    stored = {
        "name": application.name,
        "description": application.description,
        "redirect_uris": "\n".join(application.redirect_uris),
        "quota": application.quota,
        "email": "",
    }
    faults = [
        fault for fault in state.faults.as_json()["faults"] if fault["client_id"] == application.client_id
    ]
    return _page(
        "application.html",
        422 if problems else 200,
        application=application,
        is_first=application is state.applications.first,
        owner=state.people.of_account(application.owner),
        users=[(email, _name_of(email)) for email in application.users],
        people=state.people.defaults,
        faults=_FAULTS,
        active=[fault for fault in faults if fault["times"] is None],
        values={**stored, **(values or {})},
        problems=problems or {},
    )


def _name_of(email: str) -> str | None:
    found: Person | None = next((person for person in sandbox().people if person.email == email), None)
    return found.name if found else None


def _redirect(application: Application, done: str) -> AnyResponse:
    return redirect(f"/dashboard/{application.client_id}?done={done}", 303)


@dashboard.post("/<client_id>/edit")
def edit(client_id: str) -> AnyResponse:
    """Save the form, or show it again with what is wrong."""
    application = _application(client_id)
    members, problems = _read_form()
    if members["quota"] == DEVELOPMENT and len(application.users) >= MAX_USERS:
        problems["quota"] = f"In development mode, an app has up to {MAX_USERS} people. Remove some first."
    if problems:
        return _application_page(application, request.form.to_dict(), problems)
    set_members(application, members)
    return _redirect(application, "saved")


@dashboard.post("/<client_id>/users/add")
def add_user(client_id: str) -> AnyResponse:
    """Allow the person with an email address. As on Spotify, the address is not checked."""
    application, email = _application(client_id), request.form.get("email", "").strip()
    problem = None
    if not is_email(email):
        problem = "Enter the email address of a Spotify account."
    elif email in application.users:
        problem = "This person can use the app already."
    elif application.quota != EXTENDED and len(application.users) >= MAX_USERS - 1:
        problem = f"An app in development mode has up to {MAX_USERS} people, including its owner."
    if problem:
        return _application_page(application, {"email": email}, {"email": problem})
    set_members(application, {"users": [*application.users, email]})
    return _redirect(application, "added")


@dashboard.post("/<client_id>/users/remove")
def remove_user(client_id: str) -> AnyResponse:
    """Take a person off the list."""
    application = _application(client_id)
    remaining = [email for email in application.users if email != request.form.get("email")]
    set_members(application, {"users": remaining})
    return _redirect(application, "removed")


@dashboard.post("/<client_id>/secret")
def rotate_secret(client_id: str) -> AnyResponse:
    """Replace the client secret."""
    application = _application(client_id)
    application.secret = new_credential()
    return _redirect(application, "rotated")


@dashboard.post("/<client_id>/delete")
def delete(client_id: str) -> AnyResponse:
    """Delete the application."""
    sandbox().applications.remove(_application(client_id))
    return redirect("/dashboard?done=deleted", 303)


@dashboard.post("/<client_id>/faults")
def inject_fault(client_id: str) -> AnyResponse:
    """Let the application's calls fail until further notice, or end its grants, or heal it."""
    application, chosen, state = _application(client_id), request.form.get("fault", ""), sandbox()
    if chosen == "none":
        state.faults.remove_for(client_id)
        return _redirect(application, "healed")
    if chosen == "revoke":
        state.grants.revoke(client_id=client_id)
    elif chosen in _FAULTS:
        on, kind, retry_after = _FAULTS[chosen][1]
        state.faults.add(Fault(on, kind, times=None, client_id=client_id, retry_after=retry_after))
    else:
        abort(400)
    return _redirect(application, "failing")
