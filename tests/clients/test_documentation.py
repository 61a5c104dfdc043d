"""The examples in docs/clients.md and in the README's section for scripts work as written."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.accounts import Account
from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install, run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Server, Unavailable

pytestmark = [pytest.mark.sqlite_only, pytest.mark.slow]

# Of the block with this language: the file's name, and the program.
PROGRAMS = {"sh": ("sh.sh", "bash"), "python": ("program.py", sys.executable), "js": ("program.mjs", "node")}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the lines of each example."""
    return re.findall(r"^```(sh|python|js)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_examples_print_who_the_person_is(
    installed: Path, tmp_path: Path, api: Server, account: Account, sandbox: SandboxClient
) -> None:
    try:
        (tmp_path / "node_modules").symlink_to(install(TEST_PACKAGES))
    except Unavailable as error:
        cannot_run(error)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = readme.partition("\n## From your script\n")[2].partition("\n## ")[0]
    examples = blocks((ROOT / "docs/clients.md").read_text(encoding="utf-8")) + blocks(script)
    assert len(examples) == 10
    sandbox.settings(mode="legacy")  # for tekore
    account.connect()
    token = account.create_token("spotify:read")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(installed),
        "BACKLINE_TOKEN": token,
    }
    for language, lines in examples:
        name, program = PROGRAMS[language]
        if "require(" in lines:
            name = "program.cjs"
        (tmp_path / name).write_text(lines.replace("https://api.example.com", api.url))
        output = run(tmp_path, str(shutil.which(program)), name, environ=environ)
        if "generate" not in lines:
            assert "Mira T." in output, f"{lines}\nprints\n{output}"
