"""JWTs for other services: who gets one, and what a service that verifies them accepts."""

import base64
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
import requests
from flask.testing import FlaskClient

from app.auth import jwt_issuer
from app.auth.jwt_issuer import JwtIssuer
from app.infra.clock import utc_now
from app.settings.types import decode_key
from tests.conftest import SETTINGS, SPA_ORIGIN, MakeApp
from tests.helpers.flows import PASSWORD, create_token, login, register, slug
from tests.helpers.servers import ROOT, Server

NEW_KEY = "Q1nT8sWfK0e2Yb7pZ6vRjLxU4dHgC9mA3iOoE5tNqSw"
OLD_KEY = SETTINGS["JWT_SIGNING_KEYS"]
AUDIENCE, OTHER = SETTINGS["JWT_AUDIENCES"].split(", ")
JWKS = "/.well-known/jwks.json"

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def user(client: FlaskClient) -> dict[str, Any]:
    return register(client, "ada")


def ask(client: FlaskClient, audience: str = AUDIENCE, **options: Any) -> str:
    response = client.post("/api/session/jwt", json={"audience": audience}, **options)
    assert response.status_code == 200, response.text
    return str(response.json["token"])


def published_keys(client: FlaskClient) -> jwt.PyJWKSet:
    return jwt.PyJWKSet.from_dict(client.get(JWKS).json)


def verify(token: str, keys: jwt.PyJWKSet, audience: str = AUDIENCE) -> dict[str, Any]:
    """Verify a token as in docs/security.md."""
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=["EdDSA"], audience=audience, issuer="http://localhost"
    )
    return claims


def test_token_says_who_the_user_is_for_five_minutes(client: FlaskClient, user: dict[str, Any]) -> None:
    response = client.post("/api/session/jwt", json={"audience": AUDIENCE})
    claims = verify(response.json["token"], published_keys(client))

    assert claims.keys() == {"iss", "sub", "aud", "iat", "exp", "jti"}
    assert (claims["sub"], claims["aud"]) == (str(user["id"]), AUDIENCE)
    assert claims["exp"] - claims["iat"] == 300
    assert datetime.fromisoformat(response.json["expires_at"]).timestamp() == claims["exp"]
    assert response.headers["Cache-Control"] == "no-store"
    header = jwt.get_unverified_header(response.json["token"])
    assert header == {"alg": "EdDSA", "typ": "JWT", "kid": header["kid"]}
    assert verify(ask(client), published_keys(client))["jti"] != claims["jti"]


def test_issuer_is_the_origin_of_the_api(client: FlaskClient, user: dict[str, Any]) -> None:
    issuers = [
        jwt.decode(ask(client, base_url=url), options={"verify_signature": False})["iss"]
        for url in ("http://localhost", "http://LOCALHOST:80", "http://localhost:5000")
    ]

    assert issuers == ["http://localhost", "http://localhost", "http://localhost:5000"]


def test_token_is_for_one_audience(client: FlaskClient, user: dict[str, Any]) -> None:
    keys = published_keys(client)
    assert verify(ask(client, OTHER), keys, OTHER)["aud"] == OTHER

    with pytest.raises(jwt.InvalidAudienceError):
        verify(ask(client, OTHER), keys)


@pytest.mark.parametrize("audience", ["https://elsewhere.example", "", AUDIENCE.upper(), f"{AUDIENCE}/"])
def test_unlisted_audience_is_rejected(client: FlaskClient, user: dict[str, Any], audience: str) -> None:
    response = client.post("/api/session/jwt", json={"audience": audience})

    assert (response.status_code, slug(response)) == (422, "validation-error")
    assert response.json["errors"].keys() == {"audience"}


def test_only_people_who_are_signed_in_get_a_token(client: FlaskClient, user: dict[str, Any]) -> None:
    assert client.post("/api/logout").status_code == 204

    response = client.post("/api/session/jwt", json={"audience": AUDIENCE})

    assert (response.status_code, slug(response)) == (401, "not-signed-in")


def test_api_does_not_accept_its_own_tokens(client: FlaskClient, user: dict[str, Any]) -> None:
    token = ask(client)
    client.post("/api/logout")

    as_bearer = client.get("/api/user", headers={"Authorization": f"Bearer {token}"})
    as_session = client.get("/api/user", headers={"Cookie": f"backline_session={token}"})

    assert (as_bearer.status_code, slug(as_bearer)) == (401, "invalid-bearer-token")
    assert (as_session.status_code, slug(as_session)) == (401, "not-signed-in")


def test_personal_access_token_does_not_get_a_jwt(client: FlaskClient, user: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {create_token(client)}"}

    response = client.post("/api/session/jwt", json={"audience": AUDIENCE}, headers=headers)

    assert (response.status_code, slug(response)) == (403, "insufficient-rights")


@pytest.mark.settings(JWT_SIGNING_KEYS="", JWT_AUDIENCES="")
def test_routes_do_not_exist_unless_they_are_configured(client: FlaskClient, user: dict[str, Any]) -> None:
    for response in (client.post("/api/session/jwt", json={"audience": AUDIENCE}), client.get(JWKS)):
        assert (response.status_code, slug(response)) == (404, "not-found")


def test_any_page_and_any_cache_may_read_the_keys(client: FlaskClient, user: dict[str, Any]) -> None:
    for origin in (SPA_ORIGIN, "https://elsewhere.example"):
        response = client.get(JWKS, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})

        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "max-age=300"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert not {"Access-Control-Allow-Credentials", "Set-Cookie", "Vary"} & set(response.headers.keys())


def test_published_keys_are_public(client: FlaskClient) -> None:
    [key] = client.get(JWKS).json["keys"]

    assert key.keys() == {"kty", "crv", "x", "kid", "alg", "use"}
    assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("OKP", "Ed25519", "EdDSA", "sig")


def test_keys_rotate_without_rejecting_a_token(make_app: MakeApp) -> None:
    apps = [make_app(JWT_SIGNING_KEYS=keys) for keys in (OLD_KEY, f"{NEW_KEY},{OLD_KEY}", NEW_KEY)]
    before, during, after = clients = [app.test_client() for app in apps]
    register(before, "ada")
    for client in (during, after):
        login(client, "ada")
    tokens = [ask(client) for client in clients]

    assert [len(client.get(JWKS).json["keys"]) for client in clients] == [1, 2, 1]
    verify(tokens[0], published_keys(before))
    for token in tokens:
        verify(token, published_keys(during))
    for token in tokens[1:]:
        verify(token, published_keys(after))
    with pytest.raises(KeyError):
        verify(tokens[0], published_keys(after))


def test_expired_token_is_rejected(
    client: FlaskClient, user: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwt_issuer, "utc_now", lambda: utc_now() - timedelta(minutes=5, seconds=1))
    token = ask(client)

    with pytest.raises(jwt.ExpiredSignatureError):
        verify(token, published_keys(client))


def encode(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "ES256"])
def test_verifier_rejects_other_algorithms(client: FlaskClient, user: dict[str, Any], algorithm: str) -> None:
    """The classic attack: the public key is used as the secret of an HMAC."""
    _, payload, signature = ask(client).split(".")
    keys = published_keys(client)
    [key] = client.get(JWKS).json["keys"]
    header = {"alg": algorithm, "typ": "JWT", "kid": key["kid"]}
    signed = f"{encode(header)}.{payload}"
    if algorithm == "HS256":
        claims = jwt.decode(f"{signed}.", options={"verify_signature": False})
        forged = jwt.encode(claims, key["x"], algorithm="HS256", headers={"kid": key["kid"]})
    else:
        forged = f"{signed}.{'' if algorithm.lower() == 'none' else signature}"

    with pytest.raises(jwt.InvalidTokenError):
        verify(forged, keys)


def test_verifier_rejects_changed_claims(client: FlaskClient, user: dict[str, Any]) -> None:
    header, _, signature = ask(client).split(".")
    claims = jwt.decode(ask(client), options={"verify_signature": False})

    with pytest.raises(jwt.InvalidSignatureError):
        verify(f"{header}.{encode({**claims, 'sub': '1000'})}.{signature}", published_keys(client))


def test_signature_is_that_of_the_configured_key() -> None:
    """The example of RFC 8037 appendix A, which has the key's seed and its thumbprint."""
    seed = decode_key("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
    [key] = JwtIssuer([seed], [AUDIENCE]).public_keys

    assert key["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert key["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.slow
def test_lines_in_the_documentation_verify_a_token(
    server: Callable[..., AbstractContextManager[Server]],
) -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"<!-- tests/auth/test_jwt.py.*?-->\n```python\n(.*?)```", text, re.DOTALL)
    with server(workers=1) as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"
        new = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        user = http.post(f"{api.url}/api/register", json=new, timeout=30).json()
        response = http.post(f"{api.url}/api/session/jwt", json={"audience": AUDIENCE}, timeout=30)
        service: dict[str, Any] = {}
        exec(lines.replace("https://api.example.com", api.url), service)  # noqa: S102 - our own lines

        assert service["user_id"](response.json()["token"]) == user["id"]
        with pytest.raises(jwt.InvalidTokenError):
            service["user_id"](response.json()["token"][:-8])
