"""Which tests run in the same worker."""

from functools import cache

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.helpers.servers import ROOT

LONGEST = "bare server"
# Tests that share something expensive, such as Chromium and the built app.
# The tests of a module that has a fixture for all of them are a group, too.
GROUPS = {
    "tests/spa/": "browser",
    "tests/system/test_browser.py": "browser",
    "tests/spotify/oauth/test_return_to_browser.py": "browser",
    "tests/system/deploy/test_bare_server.py": LONGEST,
    "tests/system/deploy/": "nginx",
    "tests/system/test_outages_http.py": "deployment",
    "tests/clients/test_documentation.py": "generated code",
    "tests/clients/test_generated_code.py": "generated code",
    "tests/chaos/test_chaos.py": "chaos",
    "tests/chaos/test_terminations.py": "chaos",
    "tests/chaos/test_mutations.py": "mutations",
    "tests/web/test_identity_mutations.py": "copy of the project",
    "tests/auth/devices/test_mutations.py": "copy of the project",
    "tests/sandbox/test_sandbox_authorize.py": "sandbox",
}


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Assigns groups first, the longest and then the largest ones, and then single tests in their order."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of a test's group, or its own if it has none."""
        file = nodeid.partition("::")[0]
        own = file if _has_module_fixture(file) else nodeid
        return next((group for path, group in GROUPS.items() if nodeid.startswith(path)), own)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Begin with the group that takes the longest, although it has few tests."""
        if LONGEST in self.workqueue:
            self.workqueue.move_to_end(LONGEST, last=False)
        super()._assign_work_unit(node)


@cache
def _has_module_fixture(file: str) -> bool:
    return 'scope="module"' in (ROOT / file).read_text(encoding="utf-8")
