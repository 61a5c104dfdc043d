"""What the operator's commands have in common."""

from typing import Any

import click
import redis
import sqlalchemy as sa


class Command(click.Command):
    """A command that says in one line that MySQL or Redis is away, instead of with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (sa.exc.SQLAlchemyError, redis.RedisError) as error:
            raise click.ClickException(
                f"MySQL or Redis does not answer as it should ({type(error).__name__}). "
                "Ask `flask doctor`; after an update, run `flask db upgrade`."
            ) from error


def text(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return what was typed, if it is text: bytes that are not UTF-8 arrive as halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("It is not text in UTF-8.") from None
    return value
