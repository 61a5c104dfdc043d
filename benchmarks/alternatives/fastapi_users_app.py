"""fastapi-users, with sessions in Redis and users in MariaDB.

Settings are passed as JSON in the environment variable BENCHMARK.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, IntegerIDMixin, schemas
from fastapi_users.authentication import AuthenticationBackend, CookieTransport, RedisStrategy
from fastapi_users.db import SQLAlchemyBaseUserTable, SQLAlchemyUserDatabase
from sqlalchemy import Integer
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SETTINGS: dict[str, Any] = json.loads(os.environ["BENCHMARK"])
engine = create_async_engine(SETTINGS["async_database_url"], pool_size=16, pool_pre_ping=True)
new_session = async_sessionmaker(engine, expire_on_commit=False)
store = redis.asyncio.from_url(SETTINGS["redis_url"], decode_responses=True)


class Base(DeclarativeBase):
    """The tables."""


class User(SQLAlchemyBaseUserTable[int], Base):
    """A user."""

    id: Mapped[int] = mapped_column(Integer, primary_key=True)


class UserManager(IntegerIDMixin, BaseUserManager[User, int]):
    """What fastapi-users requires."""

    reset_password_token_secret = verification_token_secret = SETTINGS["secret"]


async def get_session() -> AsyncIterator[AsyncSession]:
    """Open a session of the database."""
    async with new_session() as session:
        yield session


async def get_manager(session: AsyncSession = Depends(get_session)) -> AsyncIterator[UserManager]:  # noqa: B008
    """Create the manager of a request."""
    yield UserManager(SQLAlchemyUserDatabase(session, User))


backend = AuthenticationBackend(
    name="redis",
    transport=CookieTransport(cookie_secure=False),
    get_strategy=lambda: RedisStrategy(store, lifetime_seconds=3600),
)
users = FastAPIUsers[User, int](get_manager, [backend])
app = FastAPI()
app.include_router(users.get_auth_router(backend), prefix="/auth")
app.include_router(users.get_register_router(schemas.BaseUser[int], schemas.BaseUserCreate), prefix="/auth")
app.include_router(users.get_users_router(schemas.BaseUser[int], schemas.BaseUserUpdate), prefix="/users")


async def create_tables() -> None:
    """Create the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
