"""Error reports and arguments for all CLI commands."""

from typing import Any

import click
import redis
import sqlalchemy as sa


class Command(click.Command):
    """A command that reports errors of MySQL and Redis in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            click.ClickException: MySQL or Redis failed.
        """
        try:
            return super().invoke(ctx)
        except (sa.exc.SQLAlchemyError, redis.RedisError) as error:
            raise click.ClickException(
                f"MySQL or Redis does not work properly ({type(error).__name__}). "
                "Run `flask doctor` to see why; after an update, run `flask db upgrade`."
            ) from error


def text(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return an argument that is valid text.

    Raises:
        click.BadParameter: It is not UTF-8. Such bytes arrive as lone surrogates.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("This is not valid UTF-8.") from None
    return value
