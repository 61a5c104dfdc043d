"""Standard error that holds up nobody.

Who logs makes the line, a thread writes it. While standard error takes none (its disk is full, nobody
reads the pipe), lines wait, then they are dropped and counted.
"""

import logging
import os
import select
import signal
import threading
from queue import SimpleQueue

MAX_WAITING_LINES = 10_000
# How long the process's end may wait for lines that are not written yet.
FLUSH_SECONDS = 1.0


class StderrHandler(logging.Handler):
    """Writes to standard error in a thread of its own.

    It writes past `sys.stderr`, whose lock a write that hangs would keep until the process's end.
    """

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Begin with nothing. So does a forked process: what waits is its parent's to write."""
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._refused = 0  # counted under the handler's lock
        self._unwritten = self._told = 0  # counted in the thread, which must not wait for that lock
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
            if self._waiting.qsize() >= MAX_WAITING_LINES:
                self._refused += 1
                return
            self._waiting.put(line)
            if self._thread is None:
                thread = threading.Thread(target=self._write_on, name="log", daemon=True)
                thread.start()
                self._thread = thread
        except Exception:  # noqa: BLE001 - no memory, no thread: what logs must not fail for it
            self._refused += 1

    def flush(self) -> None:
        """Wait until all lines are written, but not for long. `logging.shutdown` calls it at the end."""
        if self._thread is not None:
            done = threading.Event()
            self._waiting.put(done)
            done.wait(FLUSH_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a field that cannot be shown, arguments that do not fit
            line = self.format(_record("log_format_failed", record.name, reason=type(error).__name__))
        return f"{line}\n".encode("utf-8", "backslashreplace")

    def _write_on(self) -> None:
        # Signals are the main thread's: here, one would not wake it, and `scheduler.run` not wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            item = self._waiting.get()
            if isinstance(item, bytes):
                self._unwritten += not self._write(item)
            if self._waiting.empty() and (lost := self._refused + self._unwritten) > self._told:
                told = self._line(_record("log_lines_dropped", __name__, lines=lost - self._told))
                if self._write(told):
                    self._told = lost
            if isinstance(item, threading.Event):
                item.set()

    def _write(self, line: bytes) -> bool:
        """Write a line. Returns whether all of it went out."""
        rest = whole = b"\n" * self._torn + line  # after a piece of a line, on a line of its own
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # somebody who shares the terminal or pipe has made it so
                    select.select((), (self._fd,), ())
        except OSError:
            pass
        self._torn = bool(rest) and (self._torn or len(rest) < len(whole))
        return not rest


def _record(event: str, logger: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": logger, "levelname": "WARNING", "msg": event, **fields})
