"""Error reports and arguments for all CLI commands."""

import errno
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click
import redis
import sqlalchemy as sa
from flask.cli import AppGroup

# What the system says about output that it cannot store: the disk is full, or the terminal is gone. If the
# reader of a pipe is gone, click ends the command.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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


def report_unwritable_output(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report output that cannot be written in one line. To be `sys.excepthook`: `--help` writes too."""
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
        done = "What the command has done so far stays."
        sys.stderr.write(f"Error: The output cannot be written: {error.strerror}. {done}\n")
    else:
        sys.__excepthook__(kind, error, trace)


class LazyGroup(AppGroup):
    """A group that imports its commands when one of them is looked up. Servers never need them."""

    def __init__(self, add_commands: Callable[[AppGroup], None]) -> None:
        super().__init__()
        self._add_commands: Callable[[AppGroup], None] | None = add_commands

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Look up a command."""
        self._load()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        self._load()
        return super().list_commands(ctx)

    def _load(self) -> None:
        add_commands, self._add_commands = self._add_commands, None
        if add_commands is not None:
            add_commands(self)


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


class InputFile(click.File):
    """An argument that is a file to read, or - for standard input."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Open the file."""
        try:
            return super().convert(value, param, ctx)
        except RuntimeError:
            self.fail("standard input is closed", param, ctx)


def read_line() -> str:
    """Return a line of standard input, without the spaces around it.

    Raises:
        click.ClickException: It cannot be read, or is not UTF-8.
    """
    if sys.stdin is None:
        raise click.ClickException("Standard input is closed.")
    try:
        return sys.stdin.readline().strip()
    except (OSError, UnicodeError) as error:
        raise click.ClickException(f"Standard input cannot be read ({type(error).__name__}).") from None
