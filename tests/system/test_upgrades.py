"""Upgrades from every earlier schema with rows in it, resumed upgrades, and two releases on one schema."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from app.infra.database import Base, reading
from app.infra.probes import schema_revisions
from app.models import AccessToken, User
from app.spotify.tokens.encryption import decrypt_token
from app.spotify.tokens.key_rotation import keys_in_use
from tests.conftest import MakeApp
from tests.helpers import schemas
from tests.helpers.flows import login
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.schemas import Rows, downgrade, insert, make_rows, reflect, upgrade

pytestmark = pytest.mark.slow

REVISIONS = sorted(schema_revisions()[1])


@pytest.fixture
def url(database_url: str, tmp_path: Path) -> Iterator[str]:
    with schemas.empty_database(database_url, tmp_path) as url:
        yield url


@pytest.fixture
def app(make_app: MakeApp, url: str) -> Flask:
    """An app with a database of its own, which has no tables."""
    return make_app(DATABASE_URL=url)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


class Interruptions:
    """Repeats a migration, and kills its connection before one of its statements each time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._killer = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._allowed = 0
        self.count = 0

    def before_execution(
        self, connection: sa.Connection, _cursor: object, statement: str, *_: object
    ) -> None:
        """Kill the connection if it has executed enough statements that change anything."""
        is_change = statement.startswith(("ALTER", "CREATE", "DROP", "UPDATE"))
        # Nor before a new revision is stored: that is not committed before the next change of the schema.
        if not is_change or "alembic_version" in statement or connection.engine.url != self._engine.url:
            return
        if self._allowed == 0:
            with self._killer.connect() as killer:
                killer.execute(sa.text(f"KILL {connection.connection.thread_id()}"))
        self._allowed -= 1

    def repeat(self, migrate: Callable[[], None]) -> None:
        """Run a migration again and again, until it succeeds.

        What is not committed is rolled back. So if a run has changed nothing, the next one may execute one
        statement more.
        """
        self._allowed = allowed = 1
        state = self._state()
        while self._is_interrupted(migrate):
            self.count += 1
            before, state = state, self._state()
            self._allowed = allowed = allowed + 1 if state == before else 1

    @staticmethod
    def _is_interrupted(migrate: Callable[[], None]) -> bool:
        try:
            migrate()
        except SystemExit as error:
            if "The connection to MySQL was lost." not in str(error):
                raise
            return True
        return False

    def _state(self) -> list[Any]:
        """Return the schema and its revision."""
        queries = (
            "SELECT * FROM information_schema.columns WHERE table_schema = DATABASE()",
            "SELECT * FROM information_schema.statistics WHERE table_schema = DATABASE()",
            "SELECT * FROM alembic_version",
        )
        with self._engine.connect() as connection:
            return [connection.execute(sa.text(query)).all() for query in queries]


@contextmanager
def interruptions(engine: sa.Engine) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yields a function that runs a migration. On MySQL, it interrupts it before each of its statements."""
    if engine.dialect.name == "sqlite":  # one transaction
        yield lambda migrate: migrate()
        return
    interruptions = Interruptions(engine)
    event.listen(sa.Engine, "before_cursor_execute", interruptions.before_execution)
    yield interruptions.repeat
    assert interruptions.count > 50
    event.remove(sa.Engine, "before_cursor_execute", interruptions.before_execution)


def find_changes(engine: sa.Engine, inserted: Rows) -> dict[str, set[str]]:
    """Return the columns of which a value is no longer as it was inserted, by table."""
    changes: dict[str, set[str]] = {}
    with engine.connect() as connection:
        for table in reflect(engine).sorted_tables:
            [key] = table.primary_key.columns
            found = {row[key.name]: row for row in connection.execute(sa.select(table)).mappings()}
            for row in inserted.get(table.name, []):
                now = found[row[key.name]]
                different = {name for name, value in row.items() if name in now and now[name] != value}
                if different:
                    changes.setdefault(table.name, set()).update(different)
    return changes


def read_everything(app: Flask) -> None:
    """Load every row through its model, and decrypt every token."""
    cipher = app.extensions["backline"].token_cipher
    with app.app_context(), reading() as db:
        for mapper in Base.registry.mappers:
            assert list(db.scalars(sa.select(mapper.class_))), mapper
        for row in db.scalars(sa.select(AccessToken)):
            decrypt_token(cipher, row, "access_token")
            decrypt_token(cipher, row, "refresh_token")


def use_account(app: Flask, name: str) -> None:
    """Sign in, and read the account and the Web API."""
    client = app.test_client()
    assert login(client, name).status_code == 200
    assert client.get("/api/user").json["username"] == name
    assert client.get("/api/spotify").json["status"] == "connected"
    assert client.get("/api/spotify/v1/me").status_code == 200


def test_rows_of_every_earlier_schema_survive_and_every_release_can_write_to_the_next_schema(
    app: Flask, engine: sa.Engine, sandbox: SandboxClient
) -> None:
    people = sandbox.seed(4 * len(REVISIONS))
    inserted: list[tuple[str, Rows]] = []
    schema = sa.MetaData()

    def write(key: int, revision: str) -> None:
        """As the release that `schema` belongs to does."""
        rows = make_rows(app, key, [people.pop(), people.pop()])
        inserted.append((revision, insert(engine, rows, schema)))

    for number, revision in enumerate(REVISIONS, start=1):
        upgrade(app, revision)
        # The previous release still runs (docs/upgrading.md): what it knows must still be there, and allow
        # rows without what is new. If a migration removes what no release has used since the one before,
        # make an exception for it here.
        write(100 + number, revision)
        schema = reflect(engine)
        write(number, revision)

    for revision, rows in inserted:
        counted = revision < "0005" and "session_epoch" in rows.get("users", [{}])[0]  # random since then
        assert find_changes(engine, rows) == ({"users": {"session_epoch"}} if counted else {}), revision
    read_everything(app)
    for number in range(1, len(REVISIONS) + 1):
        use_account(app, f"ada{number}")


def test_rows_survive_a_downgrade_and_another_upgrade_that_are_interrupted_before_each_statement(
    app: Flask, engine: sa.Engine, sandbox: SandboxClient
) -> None:
    people = sandbox.seed(4)
    upgrade(app)
    schema = reflect(engine)
    inserted = [insert(engine, make_rows(app, key, people[2 * key - 2 :][:2]), schema) for key in (1, 2)]
    active, suspect, erased = 2, 3, 5  # ids
    with engine.begin() as connection:  # the older schema allows no empty tokens
        connection.execute(
            sa.text(
                "UPDATE access_tokens SET access_token = NULL, refresh_token = NULL, key_id = NULL, "
                "due_at = NULL, state = 'reauthorization_required', ended_at = updated_at WHERE id = 5"
            )
        )
    with app.app_context():
        keys = keys_in_use()

    with interruptions(engine) as repeat:
        repeat(lambda: downgrade(app, "0001"))
        assert find_changes(engine, inserted[0]) == {}
        repeat(lambda: upgrade(app))

    schemas.check(app)
    with app.app_context(), reading() as db:
        # The client secrets of two applications are gone.
        assert keys_in_use() == {key_id: count - 2 for key_id, count in keys.items()}
        rows = {row.id: row for row in db.scalars(sa.select(AccessToken))}
        epochs = set(db.scalars(sa.select(User.session_epoch)))
    assert len(epochs) == 4
    assert 0 not in epochs  # the value in the older schema
    assert (rows[erased].refresh_token, rows[erased].due_at) == (None, None)
    assert rows[erased].ended_at == rows[erased].updated_at
    assert rows[suspect].due_at == rows[suspect].not_before
    assert rows[active].due_at == rows[active].expires_at - timedelta(minutes=15)
    use_account(app, "ada1")

    downgrade(app, "base")
    assert not reflect(engine).tables
