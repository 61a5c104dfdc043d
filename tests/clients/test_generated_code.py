"""Code that three generators make from /api/openapi.json compiles, and runs the README's tour."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import environment
from tests.helpers.node import run
from tests.helpers.servers import ROOT, Server

TOURS = ROOT / "tests/clients/generated"
HEY_API_SETTINGS = {"output": {"path": "generated", "module": {"extension": ".js"}}}
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

# The generator's own code passes `*args` on, whatever the document says. The tour is checked strictly.
MYPY_SETTINGS = """
[mypy]
warn_redundant_casts = True
[mypy-backline_api.client]
disable_error_code = arg-type
[mypy-dateutil.*]
ignore_missing_imports = True
[mypy-tour_*]
disallow_any_generics = True
disallow_subclassing_any = True
disallow_untyped_calls = True
disallow_untyped_defs = True
disallow_untyped_decorators = True
warn_return_any = True
strict_equality = True
"""
RESULT = "ada Mira T. track 404\n"

pytestmark = [pytest.mark.sqlite_only, pytest.mark.slow, pytest.mark.timeout(900)]  # generators are slow


@pytest.mark.parametrize(
    ("package", "tour"),
    [("backline_api", "tour_openapi_python_client"), ("openapi_client", "tour_openapi_generator")],
)
def test_generated_python_package(generated: Path, api: Server, package: str, tour: str) -> None:
    """The types of the package and of a program that uses it are right, and the program works."""
    shutil.copy(TOURS / f"{tour}.py", generated)
    (generated / "mypy.ini").write_text(MYPY_SETTINGS)
    environ = environment(generated, generated / "generated")

    run(generated, sys.executable, "-m", "mypy", "-p", package, "-m", tour, environ=environ)

    assert run(generated, sys.executable, f"{tour}.py", api.url, environ=environ) == RESULT


def test_hey_api(generated: Path, tmp_path: Path, api: Server) -> None:
    programs = generated / "node_modules" / ".bin"
    shutil.copy(TOURS / "tour_hey_api.ts", tmp_path / "tour.ts")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "tsconfig.json").write_text(json.dumps(TSCONFIG))

    settings = {"input": f"{api.url}/api/openapi.json", **HEY_API_SETTINGS}
    (tmp_path / "openapi-ts.config.mjs").write_text(f"export default {json.dumps(settings)}")

    run(tmp_path, str(programs / "openapi-ts"))

    run(tmp_path, str(programs / "tsc"))
    assert run(tmp_path, "node", "compiled/tour.js", api.url) == RESULT
