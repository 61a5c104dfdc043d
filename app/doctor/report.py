"""How `flask doctor` shows results."""

import json
from collections.abc import Iterable
from dataclasses import asdict

import click

from app.doctor.result import CheckResult, Status, failure


def print_report(results: Iterable[CheckResult], *, as_json: bool) -> bool:
    """Print results as they come, or as one JSON document. Returns whether no check failed."""
    printed = []
    for result in results:
        printed.append(result)
        if as_json:
            continue
        click.echo(f"{result.status:<4}  {result.summary}")
        if result.advice:
            click.echo(f"      {result.advice}")
    if as_json:
        click.echo(json.dumps([asdict(result) for result in printed], indent=2))
    return all(result.status is not Status.FAILURE for result in printed)


def print_settings(problems: str, *, as_json: bool) -> None:
    """Print what is wrong with the settings. Without them, there is nothing else to check."""
    lines = (line.partition(". ") for line in problems.splitlines())
    print_report((failure(f"settings: {what}", how) for what, _, how in lines), as_json=as_json)
