"""What one check of something found, for people to read and programs to judge; it checks nothing itself."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `hint` says what to do where something is not right."""

    name: str
    verdict: Verdict
    message: str
    hint: str = ""


def fine(name: str, message: str, hint: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(name=name, verdict=Verdict.OK, message=message, hint=hint)


def problem(name: str, message: str, hint: str) -> Finding:
    """Return a finding that something will not work."""
    return Finding(name=name, verdict=Verdict.PROBLEM, message=message, hint=hint)


def unknown(name: str, message: str, hint: str) -> Finding:
    """Return a finding that it could not be found out."""
    return Finding(name=name, verdict=Verdict.UNKNOWN, message=message, hint=hint)
