"""Finds the accounts that an import names as owners."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.imports.rows import ImportRow, SkippedError
from app.models import User, normalization


class Accounts:
    """The accounts that the rows of a batch name, read in one statement."""

    def __init__(self, db: Session, rows: Iterable[ImportRow]) -> None:
        usernames = {normalization.normal_form(row.username) for row in rows if row.username is not None}
        emails = {
            form for row in rows if row.email is not None for form in normalization.spellings(row.email)
        }
        columns = sa.select(User.id, User.username, User.email, User.email_verified_at)
        named = sa.or_(User.username.in_(usernames), User.email.in_(emails))
        found = db.execute(columns.where(named)).all() if usernames or emails else []
        self.ids = [account.id for account in found]
        self._by_username = {account.username: account for account in found}
        self._by_email = {account.email: account for account in found}

    def owner_of(self, row: ImportRow) -> int | None:
        """Return the id of the account that owns a row's connection. None if the row names no account.

        An address counts only if its owner has verified it. Otherwise, anyone could register it before the
        import, and get the connection.

        Raises:
            SkippedError: There is no such account, its address is not verified, or the row names two.
        """
        named: list[int] = []
        if row.username is not None:
            account = self._by_username.get(normalization.normal_form(row.username))
            if account is None:
                raise SkippedError("there is no account with this username")
            named.append(account.id)
        if row.email is not None:
            # Earlier releases allowed one account for each spelling. The exact one decides, as at sign-in.
            forms = [normalization.lower_form(row.email), *sorted(normalization.spellings(row.email))]
            account = next((self._by_email[form] for form in forms if form in self._by_email), None)
            if account is None:
                raise SkippedError("there is no account with this email address")
            if account.email_verified_at is None:
                raise SkippedError("the owner of the account has not verified this email address")
            named.append(account.id)
        if len(set(named)) > 1:
            raise SkippedError("username and email are those of two accounts")
        return named[0] if named else None
