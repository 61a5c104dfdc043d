"""GET /authorize: the consent page and the redirect to the app."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.datastructures import MultiDict
from werkzeug.urls import iri_to_uri
from werkzeug.wrappers import Response as AnyResponse

from sandbox import authorization_request
from sandbox.authorization_request import AuthorizationRequest, InvalidRequest
from sandbox.context import sandbox
from sandbox.grants import Code
from sandbox.people import Person
from sandbox.redirects import add_to_query
from sandbox.scopes import IN_WORDS

accounts = Blueprint("accounts", __name__)

COOKIE = "sandbox_spotify"


@accounts.errorhandler(InvalidRequest)
def show_error(error: InvalidRequest) -> tuple[str, int]:
    """Show the error page."""
    return render_template("error.html", message=str(error)), 400


@accounts.after_request
def keep_private(response: Response) -> Response:
    """Forbid caching and referrers: URLs here contain codes and states."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return response


@accounts.get("/authorize")
def authorize() -> AnyResponse:
    """Show the consent page, or redirect at once if the person agreed to these scopes before."""
    state = sandbox()
    authorization = authorization_request.parse(request.args, state.applications)
    if state.settings.auto_consent is not None:
        person = state.people.named(state.settings.auto_consent)
        if person is not None:
            return _redirect_with_code(authorization, person)
    person = state.person_signed_in_with(request.cookies.get(COOKIE))
    if (
        person
        and not authorization.show_dialog
        and state.grants.agreed(authorization.application.client_id, person.account_id, authorization.scopes)
    ):
        return _redirect_with_code(authorization, person)
    return make_response(_consent_page(authorization, person))


def _consent_page(authorization: AuthorizationRequest, signed_in: Person | None) -> str:
    query = request.query_string.decode()
    return render_template(
        "consent.html",
        query=query,
        application=authorization.application,
        signed_in=signed_in,
        people=[signed_in] if signed_in else sandbox().people.defaults,
        scopes=[IN_WORDS[scope] for scope in authorization.scopes],
        returns_to=authorization.redirect_uri.partition("?")[0],
        sign_in_url=f"/logout?{urlencode({'continue': f'/authorize?{query}'})}",
    )


@accounts.post("/authorize/consent")
def submit_consent() -> AnyResponse:
    """Handle the consent form. The query is validated again, because it came from the browser."""
    state = sandbox()
    authorization = authorization_request.parse(_query_of_form(), state.applications)
    decision = request.form.get("decision")
    if decision == "cancel":
        return _redirect_to_app(authorization, error="access_denied")
    person = state.people.named(request.form.get("person", ""))
    if decision != "agree" or person is None:
        raise InvalidRequest("Choose a person, and agree or cancel")
    response = _redirect_with_code(authorization, person)
    response.set_cookie(COOKIE, state.sign_in(person), httponly=True, samesite="Lax")
    return response


def _query_of_form() -> MultiDict[str, str]:
    return MultiDict(parse_qsl(request.form.get("query", ""), keep_blank_values=True))


@accounts.get("/logout")
def sign_out() -> AnyResponse:
    """Sign this browser out and show the consent page again."""
    target = request.args.get("continue", "/")
    if not target.startswith("/authorize?"):
        target = "/"
    sandbox().signed_in.pop(request.cookies.get(COOKIE, ""), None)
    response = redirect(target, 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
    return response


def _redirect_with_code(authorization: AuthorizationRequest, person: Person) -> AnyResponse:
    state = sandbox()
    granted = state.settings.granted(authorization.scopes)
    code = state.grants.issue_code(
        Code(
            client_id=authorization.application.client_id,
            person=person.account_id,
            scopes=granted,
            redirect_uri=authorization.redirect_uri,
            challenge=authorization.challenge,
            issued_at=state.clock.now(),
        )
    )
    return _redirect_to_app(authorization, code=code.value)


def _redirect_to_app(authorization: AuthorizationRequest, **parameters: str) -> AnyResponse:
    target = add_to_query(authorization.redirect_uri, authorization.response_parameters(**parameters))
    response = Response("", 303)
    response.headers["Location"] = iri_to_uri(target)
    return response
