"""Callbacks of `GET /api/spotify/authorize`: how an authorization that this session has started ends."""

import logging
import time

from app.errors import BacklineError, NotSignedIn, SpotifyStateMismatch
from app.models import SpotifyUser, User
from app.models.snapshots import Connection, ConnectionSnapshot, UserSnapshot
from app.spotify.applications.lookup import Applications
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.consent import Consent
from app.spotify.connections import Connections, owner_of
from app.spotify.oauth.exchange import CodeExchange, authorization_error
from app.spotify.oauth.request import AuthorizeRequest, Connected, SignIn
from app.spotify.oauth.state import Authorization, AuthorizationStore
from app.spotify.oauth.usable_connection import UsableConnection
from app.spotify.session_connection import ConnectionRef, attach_to_session
from app.spotify.tokens.refresh import GrantEnded
from app.web import sessions
from config import Config

log = logging.getLogger(__name__)


class CallbackHandler:
    """Completes the authorizations of the current session."""

    def __init__(
        self,
        authorizations: AuthorizationStore,
        exchange: CodeExchange,
        accounts_bulkhead: AccountsBulkhead,
        connections: Connections,
        applications: Applications,
        usable_connection: UsableConnection,
        sign_in: SignIn,
        config: Config,
    ) -> None:
        self._authorizations = authorizations
        self._exchange = exchange
        self._accounts_bulkhead = accounts_bulkhead
        self._connections = connections
        self._applications = applications
        self._usable_connection = usable_connection
        self._sign_in = sign_in
        self._config = config

    def complete(self, request: AuthorizeRequest, user: UserSnapshot | None) -> Connected | None:
        """Complete the authorization of a callback. Returns None if this session did not start it."""
        if request.state is None:
            return None
        authorization = self._authorizations.find(request.state, user.id if user is not None else None)
        if authorization is None:
            return None
        return_to = authorization.record.return_to
        try:
            spotify_user = self._process(request, authorization, user)
        except BacklineError as error:
            if return_to is not None:
                error.members["return_to"] = return_to
            raise
        return Connected(spotify_user, return_to=return_to) if spotify_user is not None else None

    def _process(
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
        application = self._applications.to_complete(
            record.user_id, record.client_id, signs_in=record.signs_in
        )
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
            reference = self._authorizations.wait_for_result(
                authorization.state, code, authorization.record.user_id, waiter
            )
        if reference is None:
            return None
        owner = owner_of(reference) if authorization.record.signs_in else None
        if authorization.record.signs_in and owner is None:
            return None
        if user is None:
            sessions.regenerate()
        self._attach(reference, owner)
        try:
            return self._usable_connection.find()
        except GrantEnded:
            return None
