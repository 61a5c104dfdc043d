"""Serves an in-memory substitute for Redis, for development: `python -m script.embedded_redis HOST PORT`."""

import sys

from fakeredis import TcpFakeServer


def main() -> None:
    """Serve until a signal ends the process. Nothing is kept."""
    host, port = sys.argv[1:]
    TcpFakeServer((host, int(port)), server_type="redis").serve_forever()


if __name__ == "__main__":
    main()
