"""Validation of requests to /authorize, in Spotify's order."""

from __future__ import annotations

import re
from dataclasses import dataclass

from werkzeug.datastructures import MultiDict

from sandbox.applications import Application, Applications
from sandbox.redirects import is_insecure, is_registered
from sandbox.scopes import IN_WORDS

# A SHA-256 digest is always 43 characters of base64url without padding.
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


class InvalidRequest(Exception):
    """The request cannot be shown to a person. The text goes on an error page, never to the app."""


@dataclass(frozen=True)
class AuthorizationRequest:
    """A valid request to /authorize."""

    application: Application
    redirect_uri: str
    state: str | None
    scopes: tuple[str, ...]
    challenge: str | None
    show_dialog: bool

    def response_parameters(self, **parameters: str) -> dict[str, str]:
        """Return the parameters for the redirect to the app, with `state` if one was sent."""
        return parameters if self.state is None else {**parameters, "state": self.state}


def parse(args: MultiDict[str, str], applications: Applications) -> AuthorizationRequest:
    """Validate the query of /authorize.

    The texts with a prefix in capitals and `Illegal scope` are Spotify's. The others are modeled on them,
    since Spotify's wording is not known.

    Raises:
        InvalidRequest: If the request is invalid, with the text for the error page.
    """
    for name in args:
        if len(args.getlist(name)) > 1:
            raise InvalidRequest("Repeated parameter")
    application = _application(args, applications)
    response_type = _required(args, "response_type")
    if response_type != "code":
        raise InvalidRequest("response_type must be code")
    return AuthorizationRequest(
        application=application,
        redirect_uri=args["redirect_uri"],
        state=args.get("state"),
        scopes=_scopes(args.get("scope", "")),
        challenge=_challenge(args),
        show_dialog=args.get("show_dialog") == "true",
    )


def _required(args: MultiDict[str, str], name: str) -> str:
    value = args.get(name)
    if not value:
        raise InvalidRequest(f"Missing required parameter: {name}")
    return value


def _application(args: MultiDict[str, str], applications: Applications) -> Application:
    application = applications.get(_required(args, "client_id"))
    if application is None:
        raise InvalidRequest("INVALID_CLIENT: Invalid client")
    redirect_uri = _required(args, "redirect_uri")
    if is_insecure(redirect_uri):
        raise InvalidRequest("INVALID_CLIENT: Insecure redirect URI")
    if not is_registered(redirect_uri, application.redirect_uris):
        raise InvalidRequest("INVALID_CLIENT: Invalid redirect URI")
    return application


def _scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(dict.fromkeys(text.split()))
    if any(scope not in IN_WORDS for scope in scopes):
        raise InvalidRequest("Illegal scope")
    return scopes


def _challenge(args: MultiDict[str, str]) -> str | None:
    challenge, method = args.get("code_challenge"), args.get("code_challenge_method")
    if challenge is None and method is None:
        return None
    if challenge is None:
        raise InvalidRequest("Missing required parameter: code_challenge")
    if method != "S256":
        raise InvalidRequest("code_challenge_method must be S256")
    if not _CHALLENGE.fullmatch(challenge):
        raise InvalidRequest("Invalid code_challenge")
    return challenge
