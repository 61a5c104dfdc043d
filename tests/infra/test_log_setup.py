"""Log formats: one line for each record, which no field can forge."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.infra import log_setup
from tests.helpers.programs import run_python

HOSTILE = [
    'x\n{"event": "signed_in", "user_id": 1}',
    "x\r\n12:00:00 INFO    signed_in user_id=1",
    "\x1b[31mred\x1b[0m \x9b2J \x7f\x08",
    'x" user_id="1',
    "a\u2028b\u2029c\x85d\x0b\x0c\x1ce",
    "\u202egnp.exe \ud800 \x00",
]


def record(text: str) -> logging.LogRecord:
    """Make a record with this text in every place that can hold text."""
    error = ValueError(text)
    trace = (ValueError, error, None)
    fields = {"name": text, "levelname": "INFO", "msg": "%s", "args": (text,), "exc_info": trace}
    return logging.makeLogRecord({**fields, "field": text, "many": [text, {text: text}], text: "a name"})


@pytest.mark.requirement("J2")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_json_record_is_one_line_of_printable_ascii(text: str) -> None:
    line = log_setup.JsonFormatter().format(record(text))

    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert (read["event"], read["logger"], read["field"], read[text]) == (text, text, text, "a name")


@pytest.mark.requirement("J2")
@given(
    st.dictionaries(
        st.text().map("field {}".format),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    )
)
def test_json_record_has_every_value(fields: dict[str, Any]) -> None:
    line = log_setup.JsonFormatter().format(logging.makeLogRecord({"msg": "event", **fields}))

    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert {name: read[name] for name in fields} == json.loads(json.dumps(fields, default=str))


@pytest.mark.requirement("J2")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_console_record_is_one_line_with_an_indented_traceback(text: str) -> None:
    first, *below = log_setup.ConsoleFormatter().format(record(text)).split("\n")

    assert json.dumps(text)[1:-1].replace("\x7f", "\\u007f") in first
    assert " user_id=1" not in first.replace(json.dumps(text)[1:-1], "")
    assert all(line.isprintable() for line in [first, *below])
    assert below
    assert all(line.startswith("    ") for line in below)


@pytest.mark.requirement("J2")
def test_console_shows_simple_events_without_quotes() -> None:
    written = logging.makeLogRecord({"levelname": "INFO", "msg": "signed_in", "user_id": 1})

    assert log_setup.ConsoleFormatter().format(written).endswith("INFO    signed_in user_id=1")


@pytest.mark.requirement("J2")
@pytest.mark.processes
def test_records_of_libraries_and_warnings_have_the_same_format() -> None:
    done = run_python(
        """
        import logging, warnings, wsgi
        logging.getLogger("a.library").warning("said %s", "x\\ny")
        warnings.warn("old\\nnews")
        logging.getLogger("gunicorn.error").warning("x\\ny")
        """
    )

    assert done.returncode == 0
    names = [json.loads(line)["logger"] for line in done.stderr.splitlines()]
    assert names == ["a.library", "py.warnings", "gunicorn.error"]
