"""Runs a module as `python -m` does, except that Ctrl-C ends it in silence until it minds that itself.

    exec python -S script/start.py MODULE [ARGUMENT...] 3>&2 2>/dev/null

Python answers Ctrl-C with a traceback of wherever it happened to be. While it imports, which takes
longest of all, nobody can want that. -S puts off the first imports, those for site-packages, until here;
and what Python says before it gets here (it has just been seen to run) goes nowhere.
"""

import _signal  # type: ignore[import-not-found]  # built in; signal and os are Python code that takes a while
import posix
import sys

# Where Ctrl-C is ignored (nohup, a background job of a script), that is left as it is.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
try:
    posix.dup2(3, 2)
    posix.close(3)
except OSError:  # it was started without the redirections, which is as good but for the first moment
    pass
# It is this script's folder, whose test.py and others must not be taken for Python's own.
del sys.path[0]

import pathlib  # noqa: E402
import runpy  # noqa: E402
import site  # noqa: E402

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    site.main()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
