"""The README's tour, with code that openapi-generator has generated. Argument: the URL of the API."""

import sys
from urllib.parse import parse_qs, urlsplit

import httpx
from openapi_client import (
    ApiClient,
    ApiException,
    AuthApi,
    Configuration,
    Registration,
    SpotifyApi,
    WebApiErrorOut,
)

TOUR = "tour"  # X-Requested-With


def consent(url: str) -> dict[str, str]:
    """Agree on the sandbox's consent page. Returns the query of the callback."""
    parts = urlsplit(url)
    form = {"query": parts.query, "person": "mira_t_42", "decision": "agree"}
    back = httpx.post(f"{parts.scheme}://{parts.netloc}/authorize/consent", data=form, timeout=60)
    return {name: values[0] for name, values in parse_qs(urlsplit(back.headers["Location"]).query).items()}


configuration = Configuration(host=sys.argv[1])
with ApiClient(configuration) as client:
    auth, spotify = AuthApi(client), SpotifyApi(client)
    new = Registration(username="ada", email="ada@example.com", password="a long sentence is best")
    registered = auth.auth_register_with_http_info(TOUR, new)
    user = registered.data
    assert registered.headers is not None
    client.cookie = registered.headers["Set-Cookie"].partition(";")[0]  # the generated code stores none
    session = auth.auth_get_session()
    assert session.user == user, session

    started = spotify.spotify_authorize()
    assert started.authorize_url is not None, started
    back = consent(started.authorize_url)
    spotify.spotify_authorize(code=back["code"], state=back["state"])
    connection = spotify.spotify_get()
    assert connection.status == "connected", connection
    assert spotify.spotify_playback_token().token_type == "Bearer"

    player = spotify.spotify_web_api_get(path="me/player", x_requested_with=TOUR)
    assert isinstance(player, dict), player
    skipped = spotify.spotify_web_api_post_with_http_info(path="me/player/next", x_requested_with=TOUR)
    assert skipped.status_code in (200, 204), skipped
    top = spotify.spotify_web_api_get(path="me/top/tracks", x_requested_with=TOUR, query={"limit": 1})
    assert isinstance(top, dict), top
    assert top["limit"] == 1, top
    try:
        spotify.spotify_web_api_get(path=f"tracks/{'0' * 22}", x_requested_with=TOUR)
    except ApiException as error:
        failure = error.data
    assert isinstance(failure, WebApiErrorOut), failure
    print(user.username, connection.display_name, player["item"]["type"], failure.error.status)
