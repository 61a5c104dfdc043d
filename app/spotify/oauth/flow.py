"""The authorization code flow behind `GET /api/spotify/authorize`."""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from flask import session

from app.errors import BacklineError, NotSignedIn, SpotifyNotConnected, SpotifyStateMismatch
from app.models import GrantState, SpotifyUser, User
from app.models.snapshots import ConnectionSnapshot, UserSnapshot
from app.spotify import connections
from app.spotify.applications.lookup import Applications
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import Application
from app.spotify.clients.consent import Consent
from app.spotify.connections import Connections
from app.spotify.oauth.exchange import CodeExchange, authorization_error
from app.spotify.oauth.request import AuthorizationRequired, AuthorizeRequest, Connected, Connection, SignIn
from app.spotify.oauth.scopes import are_granted, optional_scopes
from app.spotify.oauth.state import Authorization, AuthorizationStore
from app.spotify.session_connection import (
    ConnectionRef,
    attach_to_session,
    current_connection,
    required_grant,
)
from app.spotify.tokens.refresh import GrantEnded, version_of
from app.spotify.tokens.service import TokenService
from app.web import identity, sessions
from app.web.access import current_user
from config import Config

log = logging.getLogger(__name__)


class AuthorizationFlow:
    """Connects the person behind the current session with Spotify."""

    def __init__(
        self,
        authorizations: AuthorizationStore,
        exchange: CodeExchange,
        accounts: SpotifyAccounts,
        accounts_bulkhead: AccountsBulkhead,
        tokens: TokenService,
        connections: Connections,
        applications: Applications,
        config: Config,
        sign_in: SignIn,
    ) -> None:
        self._authorizations = authorizations
        self._tokens = tokens
        self._exchange = exchange
        self._accounts = accounts
        self._accounts_bulkhead = accounts_bulkhead
        self._connections = connections
        self._applications = applications
        self._config = config
        self._sign_in = sign_in

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
            return self._complete_callback(request, current_user()) or self._ignore_callback()
        if request.reauthorize or request.signs_in or not are_granted(request.scopes):
            return AuthorizationRequired()
        try:
            spotify_user = self._usable_connection()
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

    def _complete_callback(self, request: AuthorizeRequest, user: UserSnapshot | None) -> Connected | None:
        """Complete the authorization of a callback. Returns None if this session did not start it."""
        if request.state is None:
            return None
        authorization = self._authorizations.find(request.state, _id(user))
        if authorization is None:
            return None
        return_to = authorization.record.return_to
        try:
            spotify_user = self._complete(request, authorization, user)
        except BacklineError as error:
            if return_to is not None:
                error.members["return_to"] = return_to
            raise
        return Connected(spotify_user, return_to=return_to) if spotify_user is not None else None

    def _complete(
        self, request: AuthorizeRequest, authorization: Authorization, user: UserSnapshot | None
    ) -> Connection | None:
        """Complete an authorization. Returns None if that has failed before.

        The first callback consumes the authorization. A duplicate gets the first one's connection.
        """
        spotify_user: Connection | None = None
        if authorization.record.status == "open":
            if request.error is not None:
                self._reject(request.error, authorization)
            elif request.code is not None:
                spotify_user = self._connect(request.code, authorization, user)
        return spotify_user or self._reuse_duplicate(request.code, authorization, user)

    def _ignore_callback(self) -> Connected:
        """Return the connection that this session already uses.

        Raises:
            SpotifyStateMismatch: There is none.
        """
        with suppress(GrantEnded):
            spotify_user = self._usable_connection()
            if spotify_user is not None:
                return Connected(spotify_user, callback_ignored=True)
        raise SpotifyStateMismatch

    def _usable_connection(self) -> ConnectionSnapshot | None:
        """Return the connection that this session uses, with its token refreshed if necessary.

        Raises:
            GrantEnded: Only a new consent helps. Spotify has ended the grant, or it was issued to the
                application of this server, which has none anymore.
            SpotifyUnavailable, SpotifyMisconfigured: The token cannot be refreshed now.
        """
        spotify_user = current_connection()
        if spotify_user is None:
            return None
        can_use = self._applications.can_use(spotify_user.token)
        if spotify_user.token.state == GrantState.REAUTHORIZATION_REQUIRED or not can_use:
            raise GrantEnded
        try:
            token = self._tokens.access_token_for(
                spotify_user.id, grant_id=required_grant(), known=spotify_user.token
            )
        except SpotifyNotConnected:
            return None  # it has just been disconnected elsewhere
        if session.get("spotify_user_id") != spotify_user.id:
            attach_to_session(ConnectionRef.of(spotify_user))
        connections.touch(spotify_user)
        if token.version != version_of(spotify_user.token):
            identity.forget()  # it has been refreshed
        return current_connection()

    def _reject(self, error: str, authorization: Authorization) -> None:
        """Consume the authorization of a callback with an error. Returns only if a duplicate was first.

        Raises:
            BacklineError: As `authorization_error` decides.
        """
        consumed = self._authorizations.consume(authorization, None)
        if consumed is not None:
            self._authorizations.record_result(consumed, None)
            raise authorization_error(error, authorization.record.client_id)

    def _connect(
        self, code: str, authorization: Authorization, user: UserSnapshot | None
    ) -> SpotifyUser | None:
        """Exchange the code, and connect this session. Returns None if a duplicate callback was first."""
        record = authorization.record
        application = self._applications.to_complete(_id(user), record.client_id, signs_in=record.signs_in)
        requested_at = time.monotonic()
        if (exchanged := self._exchange.exchange(code, authorization, application)) is None:
            return None
        consumed, tokens = exchanged
        reference, owner = None, None
        try:
            consent = Consent(self._exchange.profile(tokens, application), tokens, requested_at, application)
            if consumed.record.signs_in:
                spotify_user, reference, owner = self._store_sign_in(consent)
            else:
                spotify_user, reference = self._store(consent, user)
        finally:
            self._authorizations.record_result(consumed, reference)
        self._attach(reference, owner)
        log.info("spotify_connected", extra={"spotify_user_id": spotify_user.id})
        return spotify_user

    def _store(self, consent: Consent, user: UserSnapshot | None) -> tuple[SpotifyUser, ConnectionRef]:
        """Store a grant under its Spotify account, unless the session has ended in the meantime.

        Then the person would not expect the connection, and no session could use or delete it.
        """
        if user is not None:
            if not sessions.exists():
                raise NotSignedIn
        elif not sessions.rotate_id():  # an id that was planted earlier must not lead to the connection
            raise SpotifyStateMismatch
        # Signing in outlives the session, so a session that may have been stolen must not be enough.
        signs_in = self._config.spotify_sign_in and sessions.is_fresh()
        return self._connections.store_grant(consent, user=user, signs_in=signs_in)

    def _store_sign_in(self, consent: Consent) -> tuple[SpotifyUser, ConnectionRef, User]:
        """Store a grant, and return whom it signs in, unless the session has ended in the meantime."""
        if not sessions.exists():
            raise SpotifyStateMismatch
        return self._connections.sign_in(consent, self._sign_in.create_account)

    def _attach(self, reference: ConnectionRef, owner: User | None) -> None:
        """Let this session use a connection, or sign its owner in, whose session then uses it."""
        if owner is None:
            attach_to_session(reference)
        else:
            self._sign_in.start_session(owner)
            log.info("signed_in")

    def _reuse_duplicate(
        self, code: str | None, authorization: Authorization, user: UserSnapshot | None
    ) -> ConnectionSnapshot | None:
        """Use the connection that a duplicate of this callback made, after a double click or a reload.

        The browser shows only one of the two responses, perhaps this one. The other callback changed the id
        of a visitor's session, so this response brings a new session.
        """
        with self._accounts_bulkhead.waiting(authorization.record.client_id) as waiter:
            reference = self._authorizations.wait_for_result(authorization.state, code, _id(user), waiter)
        if reference is None:
            return None
        owner = connections.owner_of(reference) if authorization.record.signs_in else None
        if authorization.record.signs_in and owner is None:
            return None
        if user is None:
            sessions.regenerate()
        self._attach(reference, owner)
        try:
            return self._usable_connection()
        except GrantEnded:
            return None


def _id(user: UserSnapshot | None) -> int | None:
    return user.id if user is not None else None
