"""A log handler that never blocks on standard error.

The caller formats a line, and a thread writes it, together with others if there are many. While standard
error accepts nothing (a full disk, an unread pipe), lines are queued, then dropped and counted.
"""

import logging
import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

MAX_QUEUED_LINES = 10_000
MAX_LINES_PER_WRITE = 100
# The thread pauses when it has written everything: to wake it up for each line costs more than the line. The
# first one is written at once.
PAUSE_SECONDS = 0.01
# How long the process waits at exit for lines that are not written yet.
FLUSH_SECONDS = 1.0


class StderrHandler(logging.Handler):
    """Writes to standard error in a separate thread.

    It does not use `sys.stderr`: a blocked write would hold its lock until the process ends.
    """

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Start with an empty queue. A forked process does too: its parent writes what is queued."""
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._dropped = 0  # counted under the handler's lock
        self._failed = self._reported = 0  # counted by the writer thread, which must not wait for that lock
        self._partial_line = False

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record, and queue its line unless too many are queued already."""
        try:
            line = self._line(record)
            if self._queue.qsize() >= MAX_QUEUED_LINES:
                self._dropped += 1
                return
            self._queue.put(line)
            if self._thread is None:
                thread = threading.Thread(target=self._writer_loop, name="log", daemon=True)
                thread.start()
                self._thread = thread
        except Exception:  # noqa: BLE001 - out of memory or threads, which must not make the caller fail
            self._dropped += 1

    def flush(self) -> None:
        """Wait for the queued lines, up to `FLUSH_SECONDS`. `logging.shutdown` calls it."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait(FLUSH_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - arguments that do not match, a field without a text
            line = self.format(_record("log_format_failed", record.name, reason=type(error).__name__))
        return f"{line}\n".encode("utf-8", "backslashreplace")

    def _writer_loop(self) -> None:
        # A signal that is delivered here would not wake the main thread, where `scheduler.run` waits for one.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            items = self._take()
            self._failed += self._write([item for item in items if isinstance(item, bytes)])
            is_empty = self._queue.empty()
            if is_empty:
                self._report_lost_lines()
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
            if is_empty:
                # Not `time.sleep`, which libfaketime makes last an hour when it sets the clock back by one.
                select.select((), (), (), PAUSE_SECONDS)

    def _take(self) -> list[bytes | threading.Event]:
        """Wait for an item, and return all that are queued, up to a limit."""
        items = [self._queue.get()]
        with suppress(Empty):
            while len(items) < MAX_LINES_PER_WRITE:
                items.append(self._queue.get_nowait())
        return items

    def _report_lost_lines(self) -> None:
        lost = self._dropped + self._failed
        if lost > self._reported:
            record = _record("log_lines_dropped", __name__, lines=lost - self._reported)
            if not self._write([self._line(record)]):
                self._reported = lost

    def _write(self, lines: Sequence[bytes]) -> int:
        """Write lines. Returns how many were not written completely."""
        newline = b"\n" * self._partial_line
        rest = whole = newline + b"".join(lines)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # a process that shares the terminal or pipe made it non-blocking
                    select.select((), (self._fd,), ())
        except OSError:
            pass
        written = len(whole) - len(rest)
        if written:
            self._partial_line = whole[written - 1] != ord("\n")
        lost, end = 0, len(newline)
        for line in lines:
            end += len(line)
            lost += end > written
        return lost


def _record(event: str, logger: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": logger, "levelname": "WARNING", "msg": event, **fields})
