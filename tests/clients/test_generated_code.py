"""Code that three generators make from /api/openapi.json compiles, and runs the README's tour."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from script.openapi import document
from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install, run
from tests.helpers.servers import ROOT, Server, Unavailable

TOURS = ROOT / "tests/clients/generated"
HEY_API_SETTINGS = {"input": "openapi.json", "output": {"path": "generated", "module": {"extension": ".js"}}}
TSCONFIG = {
    "compilerOptions": {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "module": "nodenext",
        "target": "es2022",
        "outDir": "compiled",
    },
    "files": ["tour.ts"],
}

# The generator's own code passes `*args` on, whatever the document says.
MYPY_SETTINGS = """
[mypy]
[mypy-backline_api.client]
disable_error_code = arg-type
[mypy-dateutil.*]
ignore_missing_imports = True
"""
RESULT = "ada Mira T. track 404\n"

pytestmark = [pytest.mark.sqlite_only, pytest.mark.slow]


@pytest.fixture
def openapi(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(document(), encoding="utf-8")
    return path


def python(*arguments: str, folder: Path) -> str:
    """Run a program of the virtual environment in a folder. Returns its output."""
    # openapi-python-client calls ruff.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run(folder, sys.executable, *arguments, environ={**os.environ, "PATH": path})


def take_python_tour(folder: Path, package: str, tour: str, api: Server) -> None:
    """Check the types of a generated package and of a program that uses it, and run the program."""
    shutil.copy(TOURS / tour, folder / "tour.py")
    (folder / "mypy.ini").write_text(MYPY_SETTINGS)
    python("-m", "mypy", "-p", package, folder=folder)
    python("-m", "mypy", "--strict", "--follow-imports", "silent", "tour.py", folder=folder)
    assert python("tour.py", api.url, folder=folder) == RESULT


def test_openapi_python_client(openapi: Path, tmp_path: Path, api: Server) -> None:
    options = ("--path", str(openapi), "--output-path", "backline_api", "--meta", "none")

    python("-m", "openapi_python_client", "generate", *options, folder=tmp_path)

    take_python_tour(tmp_path, "backline_api", "tour_openapi_python_client.py", api)


def test_openapi_generator(openapi: Path, tmp_path: Path, api: Server) -> None:
    options = ("-i", str(openapi), "-g", "python", "-o", ".", "--package-name", "backline_generated")

    generator = "import openapi_generator_cli; openapi_generator_cli.cli()"
    python("-c", generator, "generate", *options, folder=tmp_path)

    take_python_tour(tmp_path, "backline_generated", "tour_openapi_generator.py", api)


def test_hey_api(openapi: Path, tmp_path: Path, api: Server) -> None:
    try:
        programs = install(TEST_PACKAGES) / ".bin"
    except Unavailable as error:
        cannot_run(error)
    shutil.copy(TOURS / "tour_hey_api.ts", tmp_path / "tour.ts")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "tsconfig.json").write_text(json.dumps(TSCONFIG))

    (tmp_path / "openapi-ts.config.mjs").write_text(f"export default {json.dumps(HEY_API_SETTINGS)}")

    run(tmp_path, str(programs / "openapi-ts"))

    run(tmp_path, str(programs / "tsc"))
    assert run(tmp_path, "node", "compiled/tour.js", api.url) == RESULT
