"""Scopes that the app asks for when it needs them."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.spotify.clients.call import Call
from app.spotify.clients.scopes import missing_scopes
from tests.helpers.flows import connect, create_token, register, send_callback, slug, start_authorization
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.upstream import Reply, Upstream

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.requirement("D12"),
    pytest.mark.settings(
        SPOTIFY_SCOPES="user-read-private user-top-read",
        SPOTIFY_OPTIONAL_SCOPES="user-library-read user-library-modify user-follow-read",
    ),
]

AUTHORIZE = "/api/spotify/authorize"
LIBRARY = "/api/spotify/v1/me/library?uris=spotify:track:1301WleyT98MSxVHPZCA6M"


def requested(url: str) -> set[str]:
    """Return the scopes that a consent page asks for."""
    return set(callback_query(url)["scope"].split())


def ask(client: FlaskClient, scope: str, **query: str) -> Any:
    return client.get(AUTHORIZE, query_string={"scope": scope, **query}).json


def test_scopes_add_up(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client)
    assert connect(client, sandbox)["scopes"] == ["user-read-private", "user-top-read"]
    asked = {"user-read-private", "user-top-read"}
    for scope in ("user-library-modify", "user-library-read user-top-read"):
        asked |= set(scope.split())

        url = ask(client, scope)["authorize_url"]

        assert requested(url) == asked
        spotify = send_callback(client, sandbox.consent(url)).json["spotify"]
        assert set(spotify["scopes"]) == asked
        assert ask(client, scope)["status"] == "connected"  # nothing more to ask for
    assert requested(ask(client, "", reauthorize="true")["authorize_url"]) == asked  # for another six months


def test_visitor_can_ask_for_a_scope_at_once(client: FlaskClient, sandbox: SandboxClient) -> None:
    url = ask(client, "user-follow-read")["authorize_url"]

    assert requested(url) == {"user-read-private", "user-top-read", "user-follow-read"}
    assert "user-follow-read" in send_callback(client, sandbox.consent(url)).json["spotify"]["scopes"]


@pytest.mark.parametrize(
    "scope",
    [
        "user-modify-playback-state",
        "user-library-read streaming",
        "evil",
        "user-library-read,user-follow-read",
    ],
)
def test_scope_that_is_not_allowed_is_rejected(
    client: FlaskClient, sandbox: SandboxClient, scope: str
) -> None:
    for is_connected in (False, True):
        if is_connected:
            connect(client, sandbox)
        response = client.get(AUTHORIZE, query_string={"scope": scope})
        assert (response.status_code, slug(response)) == (422, "validation-error")
        assert response.json["errors"].keys() == {"scope"}
    assert client.get(f"{AUTHORIZE}?scope=user-library-read&scope=user-follow-read").status_code == 422


def test_fewer_scopes_than_requested_can_be_granted(client: FlaskClient, sandbox: SandboxClient) -> None:
    sandbox.settings(granted_scopes=["user-top-read"])
    url = ask(client, "user-library-read")["authorize_url"]

    assert send_callback(client, sandbox.consent(url)).json["spotify"]["scopes"] == ["user-top-read"]
    assert ask(client, "user-library-read")["status"] == "authorization_required"


def test_response_without_scopes_grants_those_of_its_authorization(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client)
    plain, more = start_authorization(client), ask(client, "user-library-read")["authorize_url"]
    sandbox.settings(granted_scopes=[])  # Spotify leaves out the member

    assert len(send_callback(client, sandbox.consent(plain)).json["spotify"]["scopes"]) == 2
    scopes = send_callback(client, sandbox.consent(more)).json["spotify"]["scopes"]
    assert set(scopes) == {"user-read-private", "user-top-read", "user-library-read"}


def test_new_scopes_replace_the_grant(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    """As connecting does: a new grant id, and a refresh of the old grant cannot change it."""
    register(client)
    connect(client, sandbox)
    before = len(sandbox.tokens())

    send_callback(client, sandbox.consent(ask(client, "user-library-read")["authorize_url"]))

    old, new = sandbox.tokens()
    assert before == 1
    assert set(old["scopes"]) | {"user-library-read"} == set(new["scopes"])
    sandbox.expire_access_tokens()
    assert client.get("/api/spotify/v1/me").status_code == 200
    assert len(sandbox.calls(grant_type="refresh_token")) == 1
    assert [len(grant["access_tokens"]) for grant in sandbox.tokens()] == [1, 2]


def test_scope_that_is_in_no_setting_is_not_requested_again(make_app: Any, sandbox: SandboxClient) -> None:
    """Spotify rejects a whole request for a scope that it has retired."""
    client = make_app().test_client()
    send_callback(client, sandbox.consent(ask(client, "user-library-read user-follow-read")["authorize_url"]))
    later = make_app(SPOTIFY_OPTIONAL_SCOPES="user-library-modify user-follow-read").test_client()
    later._cookies = client._cookies

    url = ask(later, "user-library-modify")["authorize_url"]

    assert requested(url) == {"user-read-private", "user-top-read", "user-library-modify", "user-follow-read"}


# --- what a call needs ------------------------------------------------------------------------------


def test_rejected_call_names_the_scope_and_where_to_grant_it(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client)
    connect(client, sandbox)

    rejected = [client.put(LIBRARY) for _ in range(2)]

    for response in rejected:
        assert (response.status_code, slug(response)) == (403, "insufficient-scope")
        assert response.json["missing_scopes"] == ["user-library-modify"]
        assert response.json["error"] == {"status": 403, "message": "Insufficient client scope"}
    [url] = {response.json["authorize_url"] for response in rejected}  # for pages that poll
    assert requested(url) == {"user-read-private", "user-top-read", "user-library-modify"}
    send_callback(client, sandbox.consent(url))
    assert client.put(LIBRARY).status_code == 200


def test_scope_that_the_server_does_not_ask_for_is_named(client: FlaskClient, sandbox: SandboxClient) -> None:
    connect(client, sandbox)

    player, token = client.get("/api/spotify/v1/me/player"), client.get("/api/spotify/token")

    assert player.json["missing_scopes"] == ["user-read-playback-state"]
    assert "does not ask for user-read-playback-state" in player.json["detail"]
    assert requested(player.json["authorize_url"]) == {"user-read-private", "user-top-read"}
    assert token.json["missing_scopes"] == ["streaming"]


def test_bearer_token_gets_the_url_of_the_app(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    connect(client, sandbox)
    token = create_token(client)

    response = app.test_client().put(
        LIBRARY.replace("/api/spotify", ""), headers={"Authorization": f"Bearer {token}"}
    )

    assert response.json["missing_scopes"] == ["user-library-modify"]
    assert response.json["authorize_url"] == "http://127.0.0.1:5000/api/docs"


def test_unknown_call_has_no_known_scopes(
    client: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    upstream.replies(Reply(200, b'{"id": "mira"}'))
    connect(client, sandbox)
    upstream.replies(Reply(403, b'{"error": {"status": 403, "message": "Insufficient client scope"}}'))

    response = client.get("/api/spotify/v1/something/new")

    assert (slug(response), response.json["missing_scopes"]) == ("insufficient-scope", [])
    assert response.json["authorize_url"].startswith(f"{sandbox.accounts_url}/authorize?")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call("GET", "me/player"), "user-read-playback-state"),
        (Call("PUT", "me/player/play"), "user-modify-playback-state"),
        (Call("POST", "me/player/queue"), "user-modify-playback-state"),
        (Call("GET", "me/player/currently-playing"), "user-read-currently-playing"),
        (Call("GET", "me/player/recently-played"), "user-read-recently-played"),
        (Call("GET", "me/top/tracks"), "user-top-read"),
        (Call("GET", "me/tracks"), "user-library-read"),
        (Call("PUT", "me/tracks", "ids=1"), "user-library-modify"),
        (Call("GET", "me/shows/contains"), "user-library-read"),
        (Call("GET", "me/library/contains", "uris=spotify:track:1"), "user-library-read"),
        (
            Call("DELETE", "me/library", "uris=spotify%3Atrack%3A1,spotify:artist:2"),
            "user-library-modify user-follow-modify",
        ),
        (Call("PUT", "me/library", "uris=spotify:playlist:1"), "playlist-modify-public"),
        (Call("PUT", "me/library", ""), ""),
        (Call("GET", "me/following", "type=artist"), "user-follow-read"),
        (Call("GET", "playlists/1/items"), "playlist-read-private"),
        (Call("POST", "playlists/1/items"), "playlist-modify-public playlist-modify-private"),
        (
            Call("PUT", "playlists/1/images"),
            "ugc-image-upload playlist-modify-public playlist-modify-private",
        ),
        (Call("GET", "shows/1"), "user-read-playback-position"),
        (Call("GET", "me"), "user-read-private user-read-email"),
        (Call("GET", "search", "q=a"), ""),
    ],
)  # fmt: skip
def test_each_call_needs_its_scopes(call: Call, expected: str) -> None:
    assert " ".join(missing_scopes(call, ["ugc", "streaming"])) == expected
    assert missing_scopes(call, expected.split()) == []
