"""An authorization server made with Authlib, in the place of Spotify's accounts service.

It rotates refresh tokens, and revokes the grant if one is used twice. All visitors of /authorize consent.
`GET /_counts` returns how many refreshes it has made, and how often it has rejected one.
"""

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer  # type: ignore[import-untyped]
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin  # type: ignore[import-untyped]
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant  # type: ignore[import-untyped]
from authlib.oauth2.rfc7636 import CodeChallenge  # type: ignore[import-untyped]
from flask import Flask, Response

LIFETIME, SCOPES = int(os.environ["LIFETIME"]), os.environ["SCOPES"]
counts = {"refreshes": 0, "reused": 0, "rejected": 0}
lock = threading.Lock()


class Client(ClientMixin):  # type: ignore[misc] # Authlib has no types
    def get_client_id(self) -> str:
        return os.environ["CLIENT_ID"]

    def get_allowed_scope(self, scope: str) -> str:
        return " ".join(name for name in scope.split() if name in SCOPES.split())

    def check_redirect_uri(self, uri: str) -> bool:
        return uri == os.environ["REDIRECT_URI"]

    def check_client_secret(self, secret: str) -> bool:
        return secret == os.environ["CLIENT_SECRET"]

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in ("authorization_code", "refresh_token")


@dataclass
class Grant:
    """A person's consent. It ends if a refresh token is used twice."""

    person: str
    has_ended: bool = False


@dataclass
class Code(AuthorizationCodeMixin):  # type: ignore[misc]
    person: str
    scope: str
    redirect_uri: str
    code_challenge: str
    code_challenge_method: str

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Token(TokenMixin):  # type: ignore[misc]
    grant: Grant = field(repr=False)
    scope: str
    is_used: bool = False

    def get_scope(self) -> str:
        return self.scope

    def check_client(self, _client: Client) -> bool:
        return True


codes: dict[str, Code] = {}
tokens: dict[str, Token] = {}  # by refresh token


class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def save_authorization_code(self, code: str, request: Any) -> None:
        challenge = (request.payload.data["code_challenge"], request.payload.data["code_challenge_method"])
        codes[code] = Code(request.user, request.payload.scope, request.payload.redirect_uri, *challenge)

    def query_authorization_code(self, code: str, _client: Client) -> Code | None:
        return codes.pop(code, None)

    def delete_authorization_code(self, _code: Code) -> None:
        """Do nothing: it was deleted when it was looked up."""

    def authenticate_user(self, code: Code) -> str:
        return code.person


class RefreshGrant(RefreshTokenGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Token | None:
        with lock:
            token = tokens.get(refresh_token)
            if token is None or token.grant.has_ended or token.is_used:
                counts["rejected"] += 1
                if token is not None and token.is_used:
                    counts["reused"] += 1
                    token.grant.has_ended = True
                return None
            token.is_used = True
            counts["refreshes"] += 1
            return token

    def authenticate_user(self, token: Token) -> str:
        return token.grant.person

    def revoke_old_credential(self, _token: Token) -> None:
        """Do nothing: it was marked as used when it was looked up."""


def save_token(members: dict[str, str], request: Any) -> None:
    used = request.refresh_token
    grant = used.grant if used is not None else Grant(request.user)
    tokens[members["refresh_token"]] = Token(grant, members["scope"])


app = Flask(__name__)
app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
app.config["OAUTH2_TOKEN_EXPIRES_IN"] = dict.fromkeys(("authorization_code", "refresh_token"), LIFETIME)
server = AuthorizationServer(app, query_client=lambda _: Client(), save_token=save_token)
server.register_grant(CodeGrant, [CodeChallenge(required=True)])
server.register_grant(RefreshGrant)


@app.get("/authorize")
def authorize() -> Response:
    with lock:
        person = f"person-{len(tokens)}"
    grant = server.get_consent_grant(end_user=person)
    response: Response = server.create_authorization_response(grant_user=person, grant=grant)
    return response


@app.post("/api/token")
def issue_token() -> Response:
    response: Response = server.create_token_response()
    return response


@app.get("/_counts")
def show_counts() -> dict[str, int]:
    return counts


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs codes and states
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
