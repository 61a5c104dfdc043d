"""A new release of Backline, with a migration, that differs from this one in nothing else."""

import re
import shutil
from pathlib import Path

from tests.cluster.namespaces import HOME
from tests.helpers.servers import ROOT

_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{new}"
down_revision = "{old}"


def upgrade() -> None:
    op.create_table("release_{new}", sa.Column("id", sa.Integer, primary_key=True))
"""


def make_release(base: Path = ROOT) -> Path:
    """Copy the release at `base`, with one more migration, and return the copy."""
    old = _newest_revision(base / "migrations" / "versions")
    new = f"{int(old) + 1:04}"
    folder = HOME / f"release-{new}"
    for name in ("app", "deploy", "migrations", "script"):
        shutil.copytree(base / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.py", "wsgi.py"):
        shutil.copy(base / name, folder / name)
    text = _MIGRATION.format(new=new, old=old)
    (folder / "migrations" / "versions" / f"{new}_next_release.py").write_text(text)
    return folder


def _newest_revision(folder: Path) -> str:
    scripts = "".join(path.read_text() for path in folder.glob("*.py"))
    known, preceding = (
        set(re.findall(rf'^{name} = "(\w+)"$', scripts, re.MULTILINE))
        for name in ("revision", "down_revision")
    )
    [newest] = known - preceding
    return str(newest)
