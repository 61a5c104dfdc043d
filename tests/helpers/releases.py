"""A repository of Backline, as a server clones it, with later releases."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers.servers import ROOT

MIGRATION = '''"""Add a table that only this release knows."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))


def downgrade() -> None:
    op.drop_table("notes")
'''


class Releases:
    """The files of this checkout as the first commit, in a repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.bare = folder / "backline.git"
        self._files = folder / "files"
        self._files.mkdir()
        listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in listed.split("\0"):
            if (ROOT / name).is_file():
                (self._files / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self._files / name)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        git(self._files, "init", "--quiet", "--initial-branch=main")
        git(self._files, "remote", "add", "origin", str(self.bare))
        self.publish("First commit", "v0.1.0")

    def publish(self, subject: str, *tags: str) -> None:
        """Commit all files, and push them and the tags."""
        git(self._files, "add", "--all")
        git(self._files, "commit", "--quiet", "--allow-empty", f"--message={subject}")
        for tag in tags:
            git(self._files, "tag", tag)
        git(self._files, "push", "--quiet", "--tags", "origin", "main")

    def add_release(self, version: str, head: str) -> None:
        """Publish a release with a migration that follows `head`."""
        (self._files / "migrations/versions/29990101_notes.py").write_text(MIGRATION.format(head=head))
        path = self._files / "app/version.py"
        path.write_text(path.read_text().replace('__version__ = "', f'__version__ = "{version}"  # "'))
        self.publish(f"Release {version}", f"v{version}")


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
