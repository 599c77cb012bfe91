"""Registrations for the API's tests: first generations of attempts have ended, later ones live."""

from moulin.app.registrations import RegistrationBook
from moulin.ports.clock import Clock


def believing(clock: Clock, pepper: bytes) -> RegistrationBook:
    book = RegistrationBook(clock, pepper, str)
    book.heed(lambda attempt: not attempt.endswith(".g1"))
    return book
