"""The words of problem documents by language: a title for each code, chosen by Accept-Language.

It never holds numbers or names: those come with the error. Another language is another mapping with
the same keys.
"""

from collections.abc import Mapping
from typing import Final

ENGLISH: Final[Mapping[str, str]] = {
    "moulin_error": "Something went wrong",
    "internal_error": "A bug in Moulin",
    "invalid_request": "The request cannot be understood",
    "invalid_spec": "A value is not allowed",
    "body_too_large": "The body is too large",
    "unknown_name": "There is nothing of that name",
    "unauthenticated": "No valid key",
    "budget_exceeded": "The budget does not cover this",
    "forbidden": "The key does not allow this",
    "licence_not_accepted": "The model's licence has to be accepted first",
    "not_found": "Not found",
    "logs_dropped": "The output is no longer kept",
    "conflict": "The present state contradicts this",
    "already_exists": "It exists already",
    "in_use": "It is in use",
    "stale_generation": "It belongs to an earlier generation",
    "idempotency_mismatch": "The idempotency key belongs to another request",
    "refused": "This can never be placed here",
    "quota_exceeded": "A limit is reached for now",
    "rate_limit_exceeded": "Calls come faster than they may",
    "engine_error": "An engine failed",
    "engine_unavailable": "An engine cannot be reached",
    "engine_refused": "An engine declined",
    "source_error": "A source failed",
    "source_unavailable": "A source cannot be reached",
    "digest_mismatch": "The bytes are not those promised",
    "store_error": "The store failed",
    "store_unavailable": "The store cannot record this now",
    "store_corrupt": "The log cannot be read",
    "unavailable": "This part cannot serve just now",
    "deadline_exceeded": "It took too long",
    "local_error": "This machine cannot do it",
    "port_in_use": "The port is taken",
    "data_directory_busy": "The data directory is in use",
    "disk_full": "The disk is full",
}

LANGUAGES: Final[Mapping[str, Mapping[str, str]]] = {"en": ENGLISH}
DEFAULT_LANGUAGE: Final = "en"


def choose_language(accept: str) -> str:
    """Return the first language of an Accept-Language header that there is a catalogue for.

    Order:  by quality, then as written; a malformed quality counts as 1.

    >>> choose_language("fr-CH, fr;q=0.9, en;q=0.8")
    'en'
    """
    wanted = []
    for position, part in enumerate(accept[:200].split(",")):
        tag, _, parameter = part.partition(";")
        wanted.append((-_quality(parameter), position, tag.strip().lower().partition("-")[0]))
    for _, _, language in sorted(wanted):
        if language in LANGUAGES:
            return language
    return DEFAULT_LANGUAGE


def title(code: str, language: str = DEFAULT_LANGUAGE) -> str:
    """Return the title of a code; an unknown code has the title of `moulin_error`."""
    catalogue = LANGUAGES[language]
    return catalogue.get(code, catalogue["moulin_error"])


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    try:
        return float(value) if name == "q" else 1.0
    except ValueError:
        return 1.0
