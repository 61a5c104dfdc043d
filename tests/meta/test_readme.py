"""The commands in the README's tour work as written."""

import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.sqlite_only
def test_commands_of_the_tour_work(
    server: Callable[..., AbstractContextManager[Server]], sandbox: SandboxClient
) -> None:
    blocks = re.findall(r"<!-- tour.*?-->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    with server(workers=1) as api:
        lines = "\n".join(blocks)
        lines = lines.replace("http://127.0.0.1:5000", api.url).replace("http://127.0.0.1:5001", sandbox.url)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines], capture_output=True, text=True, check=False
        )

    assert done.returncode == 0, done.stderr
    assert '"username":"ada"' in done.stdout.replace(" ", "")
    assert done.stdout.count('"status":"connected"') == 3
    assert '"token_type":"Bearer"' in done.stdout
    assert "/problems/" not in done.stdout
