"""`return_to`: people come back to the page that they left, and to no other origin."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.spotify.oauth.return_to import MAX_LENGTH, is_return_to, without_reserved
from tests.helpers.flows import another_tab, connect, register, send_callback, slug
from tests.helpers.sandbox_client import SandboxClient, callback_query

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.settings(FRONTEND_URL="https://app.example.com/welcome?from=api"),
]

AUTHORIZE = "/api/spotify/authorize"
NAVIGATION = {"Accept": "text/html"}
PAGE = "/playlists/37i9?sort=name&tag=a%20b"


def start(client: FlaskClient, return_to: str = PAGE, **query: str) -> TestResponse:
    return client.get(AUTHORIZE, query_string={"return_to": return_to, **query})


def finish(client: FlaskClient, callback: str) -> TestResponse:
    """Follow a redirect from Spotify to the API, as a browser does."""
    return client.get(AUTHORIZE, query_string=callback_query(callback), headers=NAVIGATION)


def test_program_gets_the_page_with_the_connection(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client)
    url = start(client).json["authorize_url"]
    callback = sandbox.consent(url)

    first = send_callback(another_tab(client), callback)
    duplicate = send_callback(client, callback)

    assert (first.json["status"], first.json["return_to"]) == ("connected", PAGE)
    assert duplicate.json == first.json
    assert "playlists" not in url + callback
    assert "return_to" not in client.get(AUTHORIZE).json
    connected = start(client, "/elsewhere").json  # without a new consent
    assert (connected["status"], connected["return_to"]) == ("connected", "/elsewhere")


def test_browser_is_redirected_to_the_page(client: FlaskClient, sandbox: SandboxClient) -> None:
    for page, expected in (
        (PAGE, f"https://app.example.com{PAGE}&spotify=connected"),
        ("/", "https://app.example.com/?spotify=connected"),
        ("/top?", "https://app.example.com/top?spotify=connected"),
    ):
        sent_on = client.get(
            AUTHORIZE, query_string={"return_to": page, "reauthorize": "true"}, headers=NAVIGATION
        )
        done = finish(client, sandbox.consent(sent_on.headers["Location"]))
        again = client.get(AUTHORIZE, query_string={"return_to": page}, headers=NAVIGATION)

        assert (done.status_code, done.headers["Location"]) == (303, expected)
        assert (again.status_code, again.headers["Location"]) == (303, expected)


def test_page_is_kept_if_the_person_declines(client: FlaskClient, sandbox: SandboxClient) -> None:
    declined = [sandbox.consent(start(client).json["authorize_url"], decision="cancel") for _ in range(2)]

    redirect = finish(client, declined[0])
    problem = send_callback(client, declined[1])
    duplicate = finish(client, declined[0])

    assert redirect.headers["Location"] == f"https://app.example.com{PAGE}&spotify=denied"
    assert (slug(problem), problem.json["return_to"]) == ("spotify-access-denied", PAGE)
    # Without a valid state, the page is not known.
    assert duplicate.headers["Location"].endswith("/welcome?from=api&spotify=error-spotify-state-mismatch")


def test_only_the_stored_page_counts(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = callback_query(sandbox.consent(start(client).json["authorize_url"]))

    done = client.get(AUTHORIZE, query_string={**callback, "return_to": "//evil.example", "scope": "evil"})

    assert done.json["return_to"] == PAGE


def test_callback_of_another_session_reveals_no_page(
    client: FlaskClient, new_client: Any, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(start(client).json["authorize_url"])

    stranger = send_callback(new_client(), callback)

    assert slug(stranger) == "spotify-state-mismatch"
    assert "return_to" not in stranger.json
    assert send_callback(client, callback).json["return_to"] == PAGE


FOREIGN = {
    "two slashes": "//evil.example",
    "three slashes": "///evil.example",
    "backslash": "/\\evil.example",
    "two backslashes": "\\\\evil.example",
    "backslash later": "/a\\..\\\\evil.example",
    "encoded slash": "/%2f/evil.example",
    "encoded slash at once": "/%2Fevil.example",
    "encoded backslash": "/%5cevil.example",
    "dots before two slashes": "/..//evil.example",
    "encoded dots": "/%2e%2E//evil.example",
    "dot before two slashes": "/.//evil.example",
    "dot segment": "/a/../b",
    "encoded dot segment": "/a/%2e./b",
    "dot at the end": "/a/..",
    "overlong slash": "/%c0%af/evil.example",
    "tab": "/\t/evil.example",
    "tab first": "\t//evil.example",
    "line feed": "/\n/evil.example",
    "carriage return and header": "/a\r\nLocation: https://evil.example",
    "encoded line feed": "/%0a/evil.example",
    "encoded tab": "/%09/evil.example",
    "null": "/\0/evil.example",
    "space first": " //evil.example",
    "space": "/a b",
    "delete": "/\x7f/evil.example",
    "C1 control": "/%c2%85/evil.example",
    "fragment": "/#email-verification=evil",
    "fragment after query": "/a?b#password-reset=evil",
    "userinfo": "https://app.example.com@evil.example/",
    "userinfo without scheme": "@evil.example",
    "userinfo after slashes": "//app.example.com@evil.example",
    "other origin": "https://evil.example/",
    "own origin": "https://app.example.com/account",
    "scheme only": "https:evil.example",
    "scheme and one slash": "https:/evil.example",
    "javascript": "javascript:alert(1)",
    "data": "data:text/html,evil",
    "relative": "evil.example",
    "query only": "?evil",
    "full-width slash": "/\uff0fevil.example",
    "full-width dot": "/\uff0e\uff0e//evil.example",
    "letter that looks like a slash": "\u2215\u2215evil.example",
    "fraction slash": "/\u2044evil.example",
    "line separator": "/\u2028/evil.example",
    "right-to-left": "/\u202eelpmaxe.live//",
    "letters beyond ASCII": "/bücher",
    "bare percent": "/%",
    "half a percent": "/%2",
    "quotes": '/"><script>evil</script>',
    "very long": "/" + "x" * MAX_LENGTH,
    "very long query": "/?" + "x" * 60_000,
}


@pytest.mark.requirement("D4")
def test_page_of_another_origin_is_rejected(client: FlaskClient, sandbox: SandboxClient) -> None:
    for name, text in FOREIGN.items():
        response = start(client, text)
        navigation = client.get(AUTHORIZE, query_string={"return_to": text}, headers=NAVIGATION)

        assert (response.status_code, slug(response)) == (422, "validation-error"), name
        assert response.json["errors"].keys() == {"return_to"}, name
        assert navigation.headers["Location"] == (
            "https://app.example.com/welcome?from=api&spotify=error-validation-error"
        ), name
    connect(client, sandbox)
    assert {start(client, text).status_code for text in FOREIGN.values()} == {422}


def test_page_must_not_be_repeated_and_can_be_empty(client: FlaskClient) -> None:
    repeated = client.get(f"{AUTHORIZE}?return_to=/a&return_to=//evil.example")

    assert (repeated.status_code, repeated.json["errors"].keys()) == (422, {"return_to"})
    assert start(client, "").json["status"] == "authorization_required"


@pytest.mark.parametrize(
    "page",
    [
        "/",
        "/a",
        "/a/",
        "/a-b_c~d.e/f",
        "/search/AC%2FDC",
        "/b%C3%BCcher",
        "/a?b=//c&d=https://e.example/",
        "/@me:x",
    ],
)
def test_pages_of_the_app_are_accepted_unchanged(page: str) -> None:
    assert is_return_to(page)
    assert without_reserved(page) == page


@pytest.mark.requirement("D4")
def test_parameters_of_a_result_are_dropped(client: FlaskClient, sandbox: SandboxClient) -> None:
    """However they are spelled: an app must not take them for the result, or send a stranger's code."""
    smuggled = (
        "spotify=error-x&a=1&spotify=connected&code=stolen&state=s&error=e&%73potify=denied&spotif%79"
        "&%63ode=x&+state=y&?spotify=z&spotify+=1&b=spotify=2"
    )
    for query in (smuggled, f"?{smuggled}"):  # vue-router drops the second question mark
        url = start(client, f"/page?{query}", reauthorize="true").json["authorize_url"]

        location = finish(client, sandbox.consent(url)).headers["Location"]

        assert location == "https://app.example.com/page?a=1&b=spotify=2&spotify=connected"
        assert parse_qs(urlsplit(location).query)["spotify"] == ["connected"]
