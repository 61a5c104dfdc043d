"""A MySQL server that accepts connections, but fails every statement with the same error."""

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# PROTOCOL_41, PLUGIN_AUTH, SECURE_CONNECTION, CONNECT_WITH_DB, TRANSACTIONS
CAPABILITIES = 0x0008_A208
UTF8MB4, AUTOCOMMIT, MORE_RESULTS = 45, 2, 8
OK = b"\x00\x00\x00" + struct.pack("<HH", AUTOCOMMIT, 0)
OK_AND_MORE = b"\x00\x00\x00" + struct.pack("<HH", AUTOCOMMIT | MORE_RESULTS, 0)


class FakeMySql(socketserver.ThreadingTCPServer):
    """Accepts connections, their settings, and pings. Every other statement fails with `code`."""

    daemon_threads = True

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(("127.0.0.1", 0), _Session)


class _Session(socketserver.StreamRequestHandler):
    """See https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html."""

    def handle(self) -> None:
        low, high = CAPABILITIES & 0xFFFF, CAPABILITIES >> 16
        self._number = 0
        self._send(
            b"\x0a5.5.5-10.11.0-MariaDB\x00"
            + struct.pack("<I", 1)
            + b"12345678\x00"
            + struct.pack("<HBHHB", low, UTF8MB4, AUTOCOMMIT, high, 21)
            + bytes(10)
            + b"123456789012\x00mysql_native_password\x00"
        )
        self._receive()
        self._send(OK)
        while (command := self._receive()) and command[:1] != b"\x01":  # COM_QUIT
            statement = command[1:].upper()
            if statement.startswith(b"BEGIN;"):
                self._send(OK_AND_MORE)
                statement = statement.removeprefix(b"BEGIN;")
            if b"READ_ONLY" in statement:
                self._send_row()
            elif statement.startswith((b"SET", b"ROLLBACK", b"BEGIN", b"COMMIT")):
                self._send(OK)
            else:
                code: int = self.server.code  # type: ignore[attr-defined]
                self._send(b"\xff" + struct.pack("<H", code) + b"#HY000refused")

    def _send_row(self) -> None:
        """Send a result with one column and one row."""
        column = (
            b"\x03def\x00\x00\x00\x01x\x00\x0c" + struct.pack("<HIBHB", UTF8MB4, 4, 0xFD, 0, 0) + b"\x00\x00"
        )
        end = b"\xfe" + struct.pack("<HH", 0, AUTOCOMMIT)
        for packet in (b"\x01", column, end, b"\x010", end):
            self._send(packet)

    def _receive(self) -> bytes:
        header = self.rfile.read(4)
        if len(header) < 4:
            return b""
        self._number = header[3] + 1
        return self.rfile.read(int.from_bytes(header[:3], "little"))

    def _send(self, packet: bytes) -> None:
        self.wfile.write(len(packet).to_bytes(3, "little") + bytes([self._number % 256]) + packet)
        self._number += 1


@contextmanager
def fake_mysql(code: int) -> Iterator[tuple[str, int]]:
    """Run the server in a thread. Yields its address."""
    with FakeMySql(code) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()
