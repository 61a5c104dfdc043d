"""Which tests run in the same worker."""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

LONGEST = "bare server"
# Tests that share something expensive, such as Chromium and the built app, or a fixture of their module.
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
    "tests/sandbox/test_sandbox_authorize.py": "sandbox",
}


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Assigns groups first, the longest and then the largest ones, and then single tests in their order."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of a test's group, or its own if it has none."""
        return next((group for path, group in GROUPS.items() if nodeid.startswith(path)), nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Begin with the group that takes the longest, although it has few tests."""
        if LONGEST in self.workqueue:
            self.workqueue.move_to_end(LONGEST, last=False)
        super()._assign_work_unit(node)
