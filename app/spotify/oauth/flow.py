"""The authorization code flow behind `GET /api/spotify/authorize`."""

from collections.abc import Iterable
from contextlib import suppress

from flask import session

from app.errors import SpotifyStateMismatch
from app.models.snapshots import UserSnapshot
from app.spotify.applications.lookup import Applications
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.application import Application
from app.spotify.oauth.callback import CallbackHandler
from app.spotify.oauth.request import AuthorizationRequired, AuthorizeRequest, Connected
from app.spotify.oauth.scopes import are_granted, optional_scopes
from app.spotify.oauth.state import Authorization, AuthorizationStore
from app.spotify.oauth.usable_connection import UsableConnection
from app.spotify.tokens.refresh import GrantEnded
from app.web import sessions
from app.web.access import current_user
from config import Config


class AuthorizationFlow:
    """Connects the person behind the current session with Spotify."""

    def __init__(
        self,
        authorizations: AuthorizationStore,
        callbacks: CallbackHandler,
        accounts: SpotifyAccounts,
        applications: Applications,
        usable_connection: UsableConnection,
        config: Config,
    ) -> None:
        self._authorizations = authorizations
        self._callbacks = callbacks
        self._accounts = accounts
        self._applications = applications
        self._usable_connection = usable_connection
        self._config = config

    def authorize(self, request: AuthorizeRequest) -> Connected | AuthorizationRequired:
        """Complete a callback, or find out whether the person has to consent.

        | The request                                   | The result                                      |
        |-----------------------------------------------|-------------------------------------------------|
        | callback of an authorization of this session  | completes it, even if there is a connection     |
        | any other callback, with a connection         | that connection; the callback is ignored        |
        | any other callback, without a connection      | SpotifyStateMismatch                            |
        | no callback, `reauthorize` or `intent`        | AuthorizationRequired                           |
        | no callback, a scope that is not granted      | AuthorizationRequired                           |
        | no callback, with a connection                | that connection                                 |
        | no callback, without one, or its grant ended  | AuthorizationRequired                           |

        Raises:
            SpotifyStateMismatch: See the table; or the visitor's session or the person's application changed.
            SpotifyAccessDenied: The person declined, or Spotify rejected the code.
            SpotifyAccountInUse: The Spotify account is connected to another user.
            SpotifyAccountMismatch: The user is connected to another Spotify account.
            NotSignedIn: The user signed out during the call to Spotify.
            InvalidCredentials: The account that the Spotify account would sign in to is disabled.
            SpotifyUnavailable: Spotify does not respond, or its response cannot be used.
            SpotifyRateLimited: Spotify's rate limit has been reached.
            SpotifyMisconfigured, SpotifyAppRefused: Spotify rejects this application, or the person's own.
            SpotifyUserNotRegistered: The person is not on the allowlist of their own application.
            TooManyAttempts: This address has sent too many codes.

        An error of a callback that this session has started has a member `return_to`, if that was given.
        """
        if request.is_callback:
            return self._callbacks.complete(request, current_user()) or self._ignore_callback()
        if request.reauthorize or request.signs_in or not are_granted(request.scopes):
            return AuthorizationRequired()
        try:
            spotify_user = self._usable_connection.find()
        except GrantEnded:
            return AuthorizationRequired(grant_ended=True)
        if spotify_user is None:
            return AuthorizationRequired()
        return Connected(spotify_user, return_to=request.return_to)

    def start(
        self, scopes: Iterable[str] = (), return_to: str | None = None, *, signs_in: bool = False
    ) -> str:
        """Start an authorization. Returns the URL at Spotify to send the person to.

        `scopes` are requested in addition to SPOTIFY_SCOPES and what the connection has been granted. With
        `signs_in`, a visitor is signed in to the account of the owner. A user connects as without it.

        Raises:
            SpotifyAppRequired: The person needs an application of their own.
            TooManyAttempts: This session or address has too many that are unfinished.
        """
        user = current_user()
        if user is None and session.get("user_id") is not None:
            sessions.regenerate()  # a signed-in session that has ended must not become a visitor's
        signs_in = signs_in and user is None
        application = self._applications.to_connect(_id(user), signs_in=signs_in)
        authorization = self._authorizations.create(
            _id(user),
            optional_scopes=optional_scopes(self._config, scopes),
            return_to=return_to,
            signs_in=signs_in,
            client_id=application.own_client_id,
        )
        return self._url(authorization, application)

    def reauthorization_url(self, scopes: Iterable[str] = ()) -> str:
        """Return a URL at Spotify for a person who has to consent again, the same one for five minutes.

        Scopes and errors are as for `start`.
        """
        user_id, optional = _id(current_user()), optional_scopes(self._config, scopes)
        application = self._applications.to_connect(user_id)
        authorization = self._authorizations.get_or_create(user_id, optional, application.own_client_id)
        return self._url(authorization, application)

    def _url(self, authorization: Authorization, application: Application) -> str:
        return self._accounts.authorize_url(
            application,
            state=authorization.state,
            verifier=authorization.verifier,
            optional_scopes=authorization.record.optional_scopes,
        )

    def _ignore_callback(self) -> Connected:
        """Return the connection that this session already uses.

        Raises:
            SpotifyStateMismatch: There is none.
        """
        with suppress(GrantEnded):
            spotify_user = self._usable_connection.find()
            if spotify_user is not None:
                return Connected(spotify_user, callback_ignored=True)
        raise SpotifyStateMismatch


def _id(user: UserSnapshot | None) -> int | None:
    return user.id if user is not None else None
