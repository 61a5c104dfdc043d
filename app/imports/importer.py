"""Stores imported grants, many in one transaction.

The state of an import is in the database only: a row that was imported is a live connection, which the next
run leaves alone. So an import can be killed at any time, and started again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.imports.accounts import Accounts
from app.imports.rows import ImportRow, RowReport, RowResult, SkippedError
from app.infra import database
from app.infra.database import reading, run_in_transaction
from app.infra.encryption import TokenCipher
from app.infra.row_versions import announce
from app.models import AccessToken, GrantState, SpotifyUser
from app.models.spotify_user import unidentified_name
from app.spotify.gateway.cache import ResponseCache
from app.spotify.tokens.imported_grants import imported_grant

# Rows that are stored in one transaction: few enough that no other transaction waits long.
BATCH = 500
# The furthest ahead that a first refresh is planned. Less than `LONGEST_WAIT`.
_LONGEST_SPREAD = timedelta(hours=23)


@dataclass
class _Connection:
    """A connection that exists, or that this batch creates. `id` is None until it is stored."""

    id: int | None
    user_id: int | None
    spotify_id: str
    state: str | None  # None without a grant
    signs_in: bool = False

    @property
    def is_live(self) -> bool:
        """Whether Spotify accepts its grant, as far as is known."""
        return self.state not in (None, GrantState.REAUTHORIZATION_REQUIRED)


@dataclass
class _Connections:
    """The connections that the rows of a batch may concern, by their unique keys."""

    by_spotify_id: dict[str, _Connection] = field(default_factory=dict)
    by_owner: dict[int, _Connection] = field(default_factory=dict)

    def find(self, spotify_ids: list[str], user_ids: list[int]) -> list[_Connection]:
        """Return the connections that have one of these keys."""
        found = [self.by_spotify_id.get(spotify_id) for spotify_id in spotify_ids]
        found += [self.by_owner.get(user_id) for user_id in user_ids]
        return [connection for connection in found if connection is not None]

    def add(self, connection: _Connection) -> None:
        """Add a connection."""
        self.by_spotify_id[connection.spotify_id] = connection
        if connection.user_id is not None:
            self.by_owner[connection.user_id] = connection

    def target(self, row: ImportRow, owner_id: int | None) -> _Connection:
        """Return the connection that gets a row's grant: one that has ended, or a new one.

        Raises:
            SkippedError: It is live or signs its owner in, or it would get another owner, or its owner
                another Spotify account.
        """
        owned = self.by_owner.get(owner_id) if owner_id is not None else None
        spotify_id = row.spotify_id
        if spotify_id is None and owner_id is not None:
            spotify_id = owned.spotify_id if owned is not None else unidentified_name(owner_id)
        found = self.by_spotify_id.get(spotify_id or "")
        if found is not None and owner_id is not None and found.user_id not in (None, owner_id):
            raise SkippedError("the Spotify account is connected with another user's account")
        if found is not None and found.is_live:
            raise SkippedError("the connection is live")
        if found is not None and found.signs_in:
            # If the grant is another account's, the connection is deleted. It may be the only way to sign in.
            raise SkippedError("the owner signs in with this connection, so only the owner can renew it")
        if owned is not None and owned is not found:
            raise SkippedError("the user has connected another Spotify account")
        return found or _Connection(None, owner_id, spotify_id or "", None)


class Importer:
    """Imports rows.

    The first refreshes are spread, at half of `refresh_rate`, so that the others are not late.
    """

    def __init__(self, cipher: TokenCipher, cache: ResponseCache, refresh_rate: int) -> None:
        self._cipher = cipher
        self._cache = cache
        self._interval = timedelta(seconds=2 / refresh_rate)

    def run(
        self,
        rows: Iterable[ImportRow | RowReport],
        report: Callable[[list[RowReport]], None],
        *,
        dry_run: bool = False,
    ) -> Counter[RowResult]:
        """Import rows, and `report` each of them after the transaction that stores it. Returns their numbers.

        Raises:
            SQLAlchemyError, redis.RedisError: MySQL or Redis failed. What was reported is stored.
        """
        counts: Counter[RowResult] = Counter()
        waiting, planned = _count_waiting(), _Connections()
        for batch in _batches(rows):
            if dry_run:
                with reading() as db:
                    reports, _ = self._decide(db, batch, planned, lock=False)
            else:
                first = waiting + counts[RowResult.IMPORTED]
                reports, replaced = run_in_transaction(partial(self._store, batch, first))
                for spotify_user_id in replaced:
                    self._cache.drop(spotify_user_id)
            counts.update(found.result for found in reports)
            report(reports)
        return counts

    def _store(
        self, batch: list[ImportRow | RowReport], first: int, db: Session
    ) -> tuple[list[RowReport], list[int]]:
        """Store a batch. Returns its reports, and the ids of connections whose grant had ended."""
        reports, targets = self._decide(db, batch, _Connections(), lock=True)
        now = database.db_now(db)
        due = [now + (first + number) * self._interval % _LONGEST_SPREAD for number in range(len(targets))]
        connections = [target for _, target in targets]
        ended = [target.id for target in connections if target.id is not None]
        _insert_connections(db, connections, due, now)
        announce(
            db,
            users=[target.user_id for target in connections if target.user_id is not None],
            connections=[target.id for target in connections if target.id is not None],
        )
        _remove_ended_grants(db, connections, ended, due, now)
        grants = [
            imported_grant(
                self._cipher,
                target.id or 0,
                row.refresh_token,
                scope=row.scope,
                authorized_at=row.authorized_at,
                now=now,
                due_at=due_at,
            )
            for (row, target), due_at in zip(targets, due, strict=True)
        ]
        if grants:
            # If one has a grant by now, the unique key lets `run_in_transaction` decide again.
            db.execute(sa.insert(AccessToken), grants)
        return reports, ended

    def _decide(
        self, db: Session, batch: list[ImportRow | RowReport], planned: _Connections, *, lock: bool
    ) -> tuple[list[RowReport], list[tuple[ImportRow, _Connection]]]:
        """Return the reports of a batch, and the connections that its rows are imported to.

        `planned` are the connections of earlier batches in a dry run. This adds those of this batch.
        """
        valid = [row for row in batch if isinstance(row, ImportRow)]
        accounts = Accounts(db, valid)
        known = _read_connections(db, valid, accounts.ids, planned, lock=lock)
        reports, targets = [], []
        for row in batch:
            if isinstance(row, RowReport):
                reports.append(row)
                continue
            try:
                owner_id = accounts.owner_of(row)
                target = known.target(row, owner_id)
            except SkippedError as error:
                reports.append(RowReport(row.row, RowResult.SKIPPED, str(error)))
                continue
            target.user_id, target.state = target.user_id or owner_id, GrantState.ACTIVE
            known.add(target)
            planned.add(target)
            targets.append((row, target))
            reports.append(RowReport(row.row, RowResult.IMPORTED))
        return reports, targets


def _batches(rows: Iterable[ImportRow | RowReport]) -> Iterator[list[ImportRow | RowReport]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _count_waiting() -> int:
    """Return the number of imported grants whose first refresh is still planned."""
    with reading() as db:
        is_waiting = (AccessToken.access_token.is_(None), AccessToken.due_at > database.db_now(db))
        return db.execute(sa.select(sa.func.count()).where(*is_waiting)).scalar_one()


def _read_connections(
    db: Session, rows: list[ImportRow], user_ids: list[int], planned: _Connections, *, lock: bool
) -> _Connections:
    """Return the connections of these Spotify accounts and users.

    With `lock`, none of them gets an owner before the transaction ends.
    """
    spotify_ids = [row.spotify_id for row in rows if row.spotify_id is not None]
    signs_in = SpotifyUser.sign_in_since.is_not(None)
    columns = sa.select(
        SpotifyUser.id, SpotifyUser.user_id, SpotifyUser.spotify_id, AccessToken.state, signs_in
    )
    joined = columns.outerjoin(AccessToken, AccessToken.spotify_user_id == SpotifyUser.id)
    if lock:
        joined = joined.with_for_update(of=SpotifyUser)
    found = _Connections()
    # Two statements, so that each reads one index.
    for condition in (SpotifyUser.spotify_id.in_(spotify_ids), SpotifyUser.user_id.in_(user_ids)):
        for row in db.execute(joined.where(condition)):
            if row.spotify_id not in found.by_spotify_id:
                found.add(_Connection(*row))
    for connection in planned.find(spotify_ids, user_ids):
        found.add(connection)
    return found


def _insert_connections(
    db: Session, connections: list[_Connection], due: list[datetime], now: datetime
) -> None:
    """Insert those that have no id, and set it."""
    new = {
        target.spotify_id: (target, at) for target, at in zip(connections, due, strict=True) if not target.id
    }
    if not new:
        return
    rows = [
        {
            "user_id": target.user_id,
            "spotify_id": spotify_id,
            "last_used_at": now,
            "profile_due_at": due_at,  # after the first refresh
        }
        for spotify_id, (target, due_at) in new.items()
    ]
    db.execute(sa.insert(SpotifyUser), rows)
    ids = sa.select(SpotifyUser.spotify_id, SpotifyUser.id).where(SpotifyUser.spotify_id.in_(list(new)))
    for spotify_id, number in db.execute(ids):
        new[spotify_id][0].id = number


def _remove_ended_grants(
    db: Session, connections: list[_Connection], ended: list[int], due: list[datetime], now: datetime
) -> None:
    """Make room for a new grant in connections whose grant has ended, and give them to their owners."""
    if ended:
        is_over = AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED
        db.execute(sa.delete(AccessToken).where(AccessToken.spotify_user_id.in_(ended), is_over))
    for target, due_at in zip(connections, due, strict=True):
        if target.id in ended:
            db.execute(
                sa.update(SpotifyUser)
                .where(SpotifyUser.id == target.id)
                .values(user_id=target.user_id, spotify_app_id=None, last_used_at=now, profile_due_at=due_at)
            )
