"""The README's tour, with code that openapi-python-client has generated. Argument: the URL of the API."""

import sys
from urllib.parse import parse_qs, urlsplit

import httpx
from backline_api import AuthenticatedClient
from backline_api.api.auth import auth_get_session, auth_register
from backline_api.api.spotify import (
    spotify_authorize,
    spotify_get,
    spotify_playback_token,
    spotify_web_api_get,
    spotify_web_api_post,
)
from backline_api.models import (
    AuthorizeOut,
    Registration,
    SessionOut,
    SpotifyOut,
    SpotifyWebApiGetQuery,
    TokenOut,
    UserOut,
    WebApiErrorOut,
)

TOUR = "tour"  # X-Requested-With


def consent(url: str) -> dict[str, str]:
    """Agree on the sandbox's consent page. Returns the query of the callback."""
    parts = urlsplit(url)
    form = {"query": parts.query, "person": "mira_t_42", "decision": "agree"}
    back = httpx.post(f"{parts.scheme}://{parts.netloc}/authorize/consent", data=form, timeout=60)
    return {name: values[0] for name, values in parse_qs(urlsplit(back.headers["Location"]).query).items()}


# httpx stores the cookie with the session. The generated code takes any security for a token in a header.
timeout = httpx.Timeout(60)
client = AuthenticatedClient(
    sys.argv[1], token=TOUR, prefix="", auth_header_name="X-Requested-With", timeout=timeout
)
with client:
    new = Registration(username="ada", email="ada@example.com", password="a long sentence is best")
    user = auth_register.sync(client=client, body=new, x_requested_with=TOUR)
    assert isinstance(user, UserOut), user
    session = auth_get_session.sync(client=client)
    assert isinstance(session, SessionOut), session
    assert session.user == user

    started = spotify_authorize.sync(client=client)
    assert isinstance(started, AuthorizeOut), started
    assert isinstance(started.authorize_url, str)
    back = consent(started.authorize_url)
    completed = spotify_authorize.sync(client=client, code=back["code"], state=back["state"])
    assert isinstance(completed, AuthorizeOut), completed
    connection = spotify_get.sync(client=client)
    assert isinstance(connection, SpotifyOut), connection
    assert connection.status == "connected"
    token = spotify_playback_token.sync(client=client)
    assert isinstance(token, TokenOut), token

    player = spotify_web_api_get.sync(client=client, path="me/player", x_requested_with=TOUR)
    assert isinstance(player, dict), player
    assert player["item"]["type"] == "track"
    skipped = spotify_web_api_post.sync_detailed(client=client, path="me/player/next", x_requested_with=TOUR)
    assert skipped.status_code in (200, 204), skipped
    query = SpotifyWebApiGetQuery()
    query["limit"] = 1
    top = spotify_web_api_get.sync(client=client, path="me/top/tracks", query=query, x_requested_with=TOUR)
    assert isinstance(top, dict), top
    assert top["limit"] == 1
    missing = f"tracks/{'0' * 22}"
    error = spotify_web_api_get.sync(client=client, path=missing, x_requested_with=TOUR)
    assert isinstance(error, WebApiErrorOut), error
    print(user.username, connection.display_name, player["item"]["type"], error.error.status)
