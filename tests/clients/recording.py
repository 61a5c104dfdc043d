"""Records what a library does with its calls, in a form that can be compared between two runs.

A run sends the calls either directly to the sandbox, or through Backline. An outcome has the result or the
exception, and all responses. URLs begin with `{base}`, and what depends on the time of the run is masked.
"""

import json
import re
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import chain, count
from typing import Any

from pydantic import BaseModel, ValidationError

from tests.helpers.sandbox_client import SandboxClient

Outcome = dict[str, Any]

# Times, as text, and as milliseconds in a number, a cursor, or a link.
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z|\b1[5-9]\d{11}\b")
_VOLATILE_NUMBERS = {"progress_ms", "resume_position_ms", "timestamp"}


@dataclass(frozen=True)
class Target:
    """Where a library sends its calls: `base_url` ends with `/v1`."""

    base_url: str
    token: str
    sandbox: SandboxClient

    def normalize(self, value: Any) -> Any:
        """Return a JSON value without what differs between runs."""
        if isinstance(value, dict):
            return {
                name: "{number}"
                if name in _VOLATILE_NUMBERS and isinstance(member, int)
                else self.normalize(member)
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self.normalize(member) for member in value]
        if isinstance(value, str):
            return _TIMES.sub("{time}", value.replace(self.base_url, "{base}"))
        return value


@dataclass(frozen=True)
class Run:
    """The outcomes of a library's calls by label, in order, and its methods: the called ones, and all."""

    outcomes: dict[str, Outcome]
    called: set[str]
    methods: set[str]


@dataclass
class Recorder:
    """Makes calls of a library, and records their outcomes by label, in order."""

    target: Target
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    """The names of the methods that were called."""
    responses: list[Any] = field(default_factory=list)
    """The responses that the current call has received so far. Clients add to it: see `add_response`."""

    def call(self, method: Callable[..., Any], *args: Any, label: str | None = None, **kwargs: Any) -> Any:
        """Call a method of a client. Returns its result, or None if it raised an exception."""
        self.called.add(method.__name__)
        self.responses.clear()
        result, outcome = None, {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecated methods and unknown members
                result = method(*args, **kwargs)
            outcome["returned"] = self.target.normalize(_as_json(result))
        except Exception as error:  # noqa: BLE001 - whatever the library raises is its outcome
            outcome["raised"] = self.target.normalize([type(error).__name__, _describe(error)])
        outcome["responses"] = self.target.normalize([*self.responses])
        self.outcomes[_unique(label or method.__name__, self.outcomes)] = outcome
        return result

    def add_response(self, method: str, url: object, status: int, headers: Any) -> None:
        """Record a response of the current call. Errors of Backline have a content type of their own."""
        content_type = headers.get("Content-Type") if status < 400 else None
        self.responses.append([method, str(url), status, content_type, headers.get("Retry-After")])


def parse_run(output: str, target: Target) -> Run:
    """Read what a program in another language has recorded and printed."""
    found = json.loads(output)
    outcomes: dict[str, Outcome] = {}
    for call in found["calls"]:
        outcomes[_unique(call["label"], outcomes)] = target.normalize(call["outcome"])
    return Run(outcomes, {call["method"] for call in found["calls"]}, set(found["methods"]))


def _unique(label: str, taken: Container[str]) -> str:
    labels = chain([label], (f"{label} ({number})" for number in count(2)))
    return next(label for label in labels if label not in taken)


def public_methods(library: type) -> set[str]:
    """Return the names of a class's methods that its users may call."""
    return {name for name in dir(library) if not name.startswith("_") and callable(getattr(library, name))}


def _describe(error: Exception) -> Any:
    """Return what an exception says. The text of a `ValidationError` has parts of values, cut anywhere."""
    if isinstance(error, ValidationError):
        return [[list(found["loc"]), found["msg"]] for found in error.errors()]
    return str(error)


def _as_json(result: Any) -> Any:
    """Return a result of spotipy or tekore as a JSON value."""
    if isinstance(result, BaseModel):
        return {"model": type(result).__name__, **_as_json(dict(result))}
    if isinstance(result, dict):
        return {str(name): _as_json(value) for name, value in result.items()}
    if isinstance(result, Enum):
        return result.value
    if isinstance(result, list | tuple):
        return [_as_json(value) for value in result]
    if result is None or isinstance(result, bool | int | float | str):
        return result
    return result.isoformat().replace("+00:00", "Z") if isinstance(result, datetime) else str(result)
