"""A typical Flask application: Flask-Session on Redis, Flask-SQLAlchemy, and Flask-Login.

Settings are passed as JSON in the environment variable BENCHMARK.
"""

import json
import os
from typing import Any

from flask import Flask, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from redis import Redis
from werkzeug.security import check_password_hash, generate_password_hash

SETTINGS: dict[str, Any] = json.loads(os.environ["BENCHMARK"])
db, login_manager, sessions = SQLAlchemy(), LoginManager(), Session()


class User(UserMixin, db.Model):
    """A user."""

    id = db.Column(db.Integer, primary_key=True)
    username = db.Column(db.String(64), unique=True, nullable=False)
    email = db.Column(db.String(255), unique=True, nullable=False)
    password = db.Column(db.String(255), nullable=False)


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    """Return the user of a session."""
    return db.session.get(User, int(user_id))


def create_app() -> Flask:
    """Create the application."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=SETTINGS["secret"],
        SQLALCHEMY_DATABASE_URI=SETTINGS["database_url"],
        SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True},
        SESSION_TYPE="redis",
        SESSION_REDIS=Redis.from_url(SETTINGS["redis_url"]),
        SESSION_KEY_PREFIX="flask-stack:",
    )
    for extension in (db, login_manager, sessions):
        extension.init_app(app)

    @app.post("/register")
    def register() -> dict[str, object]:
        new = request.get_json()
        password = generate_password_hash(new["password"])
        db.session.add(User(username=new["username"], email=new["email"], password=password))
        db.session.commit()
        return {}

    @app.post("/login")
    def login() -> dict[str, object] | tuple[dict[str, object], int]:
        given = request.get_json()
        user = db.session.scalar(db.select(User).filter_by(username=given["username"]))
        if user is None or not check_password_hash(user.password, given["password"]):
            return {}, 401
        login_user(user)
        return {}

    @app.get("/me")
    @login_required
    def me() -> dict[str, object]:
        return {"id": current_user.id, "username": current_user.username, "email": current_user.email}

    return app


if __name__ == "__main__":
    with create_app().app_context():
        db.create_all()
