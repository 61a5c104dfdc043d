"""The Dockerfile and compose.yaml, compared with the files that they name. No engine is needed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import Any

import pytest
import yaml

from config import Config
from tests.helpers.servers import ROOT, process_environment
from tests.test_config import DEVELOPMENT

pytestmark = pytest.mark.sqlite_only

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
COMPOSE = (ROOT / "deploy/compose.yaml").read_text()
NGINX = (ROOT / "deploy/nginx.conf").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
# What the images of others read; see their documentation.
OF_IMAGES = {"MARIADB_DATABASE", "MARIADB_USER", "MARIADB_PASSWORD", "MARIADB_RANDOM_ROOT_PASSWORD"}
OF_COMPOSE = {"MYSQL_PASSWORD", "REDIS_PASSWORD"}


def copied() -> list[str]:
    """The files and folders of the project in the image."""
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    lines = re.findall(r"^COPY (?!--from)(.+)$", final, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_image_has_everything_that_the_app_needs(tmp_path: Path) -> None:
    for source in copied():
        path = ROOT / source
        if path.is_dir():
            copytree(path, tmp_path / source, ignore=ignore_patterns("__pycache__"))
        else:
            copy(path, tmp_path / source)
    environment = process_environment({**DEVELOPMENT, "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3"})

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    migrated = run("flask", "--app", "wsgi:app", "db", "upgrade")
    assert migrated.returncode == 0, migrated.stderr
    checked = run("gunicorn", "--check-config", "-c", "deploy/gunicorn.conf.py", "wsgi:app")
    assert checked.returncode == 0, checked.stderr


def test_build_context_has_what_is_copied() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    sources = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    needed = {source for line in sources for source in line.split()[:-1]}

    assert needed == allowed
    assert all((ROOT / source).exists() for source in needed)


def test_images_are_pinned_and_the_last_stage_has_no_compiler_and_no_root() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images += [service["image"] for name, service in SERVICES.items() if name not in OURS]
    final = DOCKERFILE.rpartition("\nFROM ")[2]

    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+[a-z0-9.-]*", image) for image in images), images
    assert len(set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))) == 1
    assert "gcc" not in final
    assert re.search(r"^USER backline$", final, re.MULTILINE)
    for name, service in SERVICES.items():
        if name in OURS or name == "nginx":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def test_ports_agree() -> None:
    port = Config.model_fields["port"].default

    assert f"http://127.0.0.1:{port}/livez" in DOCKERFILE
    assert f"server 127.0.0.1:{port};" in NGINX
    assert SERVICES["nginx"]["ports"] == ["443:443"]
    assert "listen 443 ssl" in NGINX
    assert OURS["api"]["network_mode"] == "service:nginx"


def test_variables_are_settings() -> None:
    settings = {name.upper() for name in Config.model_fields}
    for name, service in SERVICES.items():
        used = set(service.get("environment", {}))
        assert used <= (settings if name in OURS else OF_IMAGES | OF_COMPOSE), name
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE)) == OF_COMPOSE


def test_image_is_built_from_the_projects_root() -> None:
    for service in OURS.values():
        assert service["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}


def test_commands_exist(tmp_path: Path) -> None:
    commands = [service["command"] for service in OURS.values() if "command" in service]
    default = re.search(r"^CMD \[(.+)\]$", DOCKERFILE.rpartition("HEALTHCHECK")[2], re.MULTILINE)

    assert default is not None
    assert shlex.split(default[1].replace(",", ""))[0] == "gunicorn"
    assert commands == [["flask", "scheduler"], ["flask", "db", "upgrade"]]
    for name in ("gunicorn", "flask"):
        assert (Path(sys.executable).parent / name).exists()
    mounted = [volume.split(":")[0] for volume in SERVICES["nginx"]["volumes"]]
    assert (ROOT / mounted[0]).is_file()


def test_documented_commands_name_what_exists() -> None:
    """No engine is installed here, so nothing runs them."""
    header = COMPOSE.split("\nx-backline")[0]
    file = re.search(r"docker compose --project-directory \. -f (\S+?)\"", header)
    runs = re.findall(r"\$compose run --rm (\w+) flask (\w+)", header)
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("deploy.md", "upgrading.md"))

    assert file is not None
    assert (ROOT / file[1]).is_file()
    assert runs == [("api", "doctor")]
    assert set(re.findall(r"\$compose [a-z -]+", header + pages)) == {
        "$compose up --build --detach",
        "$compose run --rm api flask doctor",
    }
    for name in ("api", "scheduler"):  # so that `up` migrates before it replaces them
        assert OURS[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
