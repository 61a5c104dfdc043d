"""docs/architecture.md names what exists, and the code keeps to its limits."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT

DOCUMENT = ROOT / "docs" / "architecture.md"
MAX_FUNCTION_LINES, MAX_FUNCTION_LINES_P90, MAX_MODULE_LINES = 50, 20, 299
PRODUCT = [
    *(path for name in ("app", "deploy", "sandbox", "script") for path in (ROOT / name).rglob("*.py")),
    ROOT / "config.py",
    ROOT / "wsgi.py",
]

# Such as `auth.login.authenticate` or `web.throttle.Throttle.attempt`, relative to app/.
FLOWS = DOCUMENT.read_text(encoding="utf-8").partition("## Eight flows")[2].partition("\n## ")[0]
STEPS = re.findall(r"^ *\d+\. `([\w.]+)`", FLOWS, re.MULTILINE)


@pytest.mark.parametrize("step", STEPS)
def test_flows_name_existing_functions(step: str) -> None:
    names = step.split(".")
    for end in range(len(names) - 1, 0, -1):
        if (ROOT / "app" / Path(*names[:end])).with_suffix(".py").is_file():
            module = import_module(f"app.{'.'.join(names[:end])}")
            assert callable(attrgetter(".".join(names[end:]))(module))
            return
    pytest.fail(f"app/ has no module for {step}")


def test_eight_flows_have_steps() -> None:
    flows = re.split(r"^### ", FLOWS, flags=re.MULTILINE)[1:]

    assert len(flows) == 8
    assert all(re.search(r"^1\. `", flow, re.MULTILINE) for flow in flows)


def test_tree_lists_every_package_and_module() -> None:
    tree = DOCUMENT.read_text(encoding="utf-8").partition("```\napp/\n")[2].partition("```")[0]
    listed = set(re.findall(r"\w+", tree))
    existing = {path.stem for path in (ROOT / "app").rglob("*.py") if path.stem != "__init__"}
    existing |= {
        path.parent.name for path in (ROOT / "app").rglob("__init__.py") if path.parent.name != "app"
    }

    assert existing - listed == set()
    assert listed - existing == set()


def _functions() -> Iterator[tuple[int, str]]:
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}: {node.name}"


def test_functions_fit_on_a_screen() -> None:
    functions = sorted(_functions())

    assert [function for function in functions if function[0] > MAX_FUNCTION_LINES] == []
    assert functions[len(functions) * 9 // 10][0] <= MAX_FUNCTION_LINES_P90


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in PRODUCT}

    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}
