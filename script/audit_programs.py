"""The programs of script/audit, in an environment of their own."""

from script.bootstrap import PIPENV_HOME

AUDIT_VENV = PIPENV_HOME / "audit"


def audit_command(program: str) -> list[str]:
    """Return the beginning of a command of script/audit."""
    # By itself, the program would not start after the project was moved.
    return [str(AUDIT_VENV / "bin/python"), str(AUDIT_VENV / "bin" / program)]
