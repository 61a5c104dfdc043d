"""The check that every transaction announces which remembered rows it changes."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra.database import db, writing
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyUser, User
from tests.helpers import announcements
from tests.helpers.announcements import NotAnnounced, written

pytestmark = pytest.mark.sqlite_only


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        (sa.update(User).values(username="ada"), "users"),
        (sa.update(User).values(password_hash="hash"), None),
        (sa.delete(User), "users"),
        (sa.insert(User), None),
        (sa.update(SpotifyUser).values(last_used_at=None), "spotify_users"),
        (sa.update(SpotifyUser).where(SpotifyUser.user_id == 7).values(product=None), None),
        (sa.insert(SpotifyUser), "spotify_users"),
        (sa.update(AccessToken).values(due_at=None, state="suspect"), "access_tokens"),
        (sa.update(AccessToken).where(AccessToken.state == "active").values(lease_until=None), None),
        (sa.delete(AccessToken), "access_tokens"),
        (sa.select(User), None),
    ],
)
def test_statement_that_changes_what_is_remembered_is_found(statement: sa.Executable, table: str) -> None:
    for dialect in (None, sa.dialects.mysql.dialect()):
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        assert written(str(compiled)) == table


@pytest.fixture
def change_as_the_product(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes a connection's row with an announcement, as if the product did it."""
    monkeypatch.setattr(announcements, "_is_from_product", lambda: True)

    def change(announced: Callable[[sa.orm.Session], object]) -> None:
        with app.app_context(), writing() as session:
            announced(session)
            session.execute(sa.update(SpotifyUser).values(display_name="Mira"))

    with app.app_context(), writing() as session:
        announce(session, connections=[7])
        session.add(SpotifyUser(id=7, spotify_id="mira"))
    return change


def test_change_must_be_announced(change_as_the_product: Callable[..., None]) -> None:
    with pytest.raises(NotAnnounced):
        change_as_the_product(lambda _: None)

    announcements.NOT_ANNOUNCED.clear()
    change_as_the_product(lambda session: announce(session, connections=[7]))


def test_change_that_bypasses_the_session_must_be_announced(
    app: Flask, change_as_the_product: Callable[..., None]
) -> None:
    with pytest.raises(NotAnnounced), app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.update(SpotifyUser).values(display_name="Mira"))

    announcements.NOT_ANNOUNCED.clear()


def test_change_by_a_test_forgets_all_versions(app: Flask) -> None:
    store = app.extensions["backline"].redis
    store.set("version:connection:7", "label")

    with app.app_context(), writing() as session:
        session.add(SpotifyUser(id=7, spotify_id="mira"))

    assert not store.exists("version:connection:7")
