"""Run a module like `python -m`, but let Ctrl-C end it without a traceback.

    exec python -S script/start.py MODULE [ARGUMENT...] 3>&2 2>/dev/null

While Python starts, stderr goes nowhere, and -S postpones the slow imports of `site` until Ctrl-C is quiet.
"""

import os
import signal
import site
import sys
from contextlib import suppress

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and `&` in a script ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
with suppress(OSError):  # started without the redirections
    os.dup2(3, 2)
    os.close(3)

import runpy

sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - pathlib is slow to import
site.main()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
