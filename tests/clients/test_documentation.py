"""The examples in docs/clients.md and in the README's section for scripts work as written."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.accounts import Account
from tests.clients.conftest import environment, examples
from tests.helpers.node import run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Server

pytestmark = [pytest.mark.sqlite_only, pytest.mark.slow, pytest.mark.timeout(900)]  # generators are slow

# Of the block with this language: the file's name, and the program.
PROGRAMS = {"sh": ("sh.sh", "bash"), "python": ("program.py", sys.executable), "js": ("program.mjs", "node")}


def test_examples_print_who_the_person_is(
    installed: Path, generated: Path, api: Server, account: Account, sandbox: SandboxClient
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = readme.partition("\n## From your script\n")[2].partition("\n## ")[0]
    found = examples((ROOT / "docs/clients.md").read_text(encoding="utf-8")) + examples(script)
    assert len(found) == 10
    sandbox.settings(mode="legacy")  # for tekore
    account.connect()
    environ = environment(installed, generated, BACKLINE_TOKEN=account.create_token("spotify:read"))
    for language, lines in found:
        if "generate" in lines:
            continue  # `generated` has run these
        name, program = PROGRAMS[language]
        if "require(" in lines:
            name = "program.cjs"
        (generated / name).write_text(lines.replace("https://api.example.com", api.url))
        output = run(generated, str(shutil.which(program)), name, environ=environ)
        assert "Mira T." in output, f"{lines}\nprints\n{output}"
