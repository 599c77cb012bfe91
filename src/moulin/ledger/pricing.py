"""Decide what a usage costs its project, and apart from that what its energy cost the operator.

Never rounds twice: a line is one exact product, rounded half to even once, to the nano-euro.
Prices come from the latest book in force when the usage started, so that pricing an old usage
again gives the old charge.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

from moulin.domain.errors import check
from moulin.domain.factory import Price, PriceBook, Site
from moulin.domain.objects import BATCH_FACTOR_PPM
from moulin.domain.units import MJ_PER_KWH, divide_round_half_even
from moulin.domain.usage import WHOLE_PPM, Charge, ChargeLine, Usage


def price(usage: Usage, books: Sequence[PriceBook], site: Site) -> Charge:
    """Price a usage line by line; a meter without a price costs nothing and gets no line.

    A price for the usage's subject comes before the default one. Without a book in force the
    charge is zero and names no book. A line of a batch pays the book's part of each price, once.

    Order:  lines by meter.
    """
    book = book_at(books, usage.start_ns)
    factor_ppm = _factor_ppm(book, usage)
    lines = tuple(
        charge_line(found, meter, quantity, factor_ppm)
        for meter, quantity in sorted(usage.quantities.items())
        if quantity and (found := find_price(book, meter, usage.subject)) is not None
    )
    return Charge(
        usage=usage.id,
        price_book=book.name if book else "",
        price_book_digest=price_book_digest(book) if book else "",
        lines=lines,
        amount_neur=sum(line.amount_neur for line in lines),
        operator_cost_neur=divide_round_half_even(
            usage.energy_mj * site.energy_price_neur_per_kwh, MJ_PER_KWH
        ),
    )


def book_at(books: Sequence[PriceBook], at_ns: int) -> PriceBook | None:
    """Return the latest book in force at a time, None before the first; ties go to the later name."""
    in_force = [book for book in books if book.effective_from_ns <= at_ns]
    return max(in_force, key=lambda book: (book.effective_from_ns, book.name), default=None)


def find_price(book: PriceBook | None, meter: str, subject: str) -> Price | None:
    """Return the price of a meter for a subject, else its default price, else None: it is free."""
    for wanted in dict.fromkeys((subject, "")):
        for candidate in book.prices if book else ():
            if candidate.meter == meter and candidate.subject == wanted:
                return candidate
    return None


@lru_cache(maxsize=64)  # asked for with every usage
def price_book_digest(book: PriceBook) -> str:
    """Return `sha256:` and the digest of the book's exact contents, whatever the order of prices."""
    prices = sorted(
        [p.sku, p.meter, p.subject, str(p.unit_price_neur), str(p.per)] for p in book.prices
    )
    contents = [book.name, book.currency, str(book.effective_from_ns), prices]
    if book.batch_ppm != BATCH_FACTOR_PPM:  # books from before there were batches keep their digest
        contents.append(str(book.batch_ppm))
    text = json.dumps(contents, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def _factor_ppm(book: PriceBook | None, usage: Usage) -> int:
    if usage.is_repeated:
        return 0
    return book.batch_ppm if book is not None and usage.line else WHOLE_PPM


def charge_line(found: Price, meter: str, quantity: int, factor_ppm: int = WHOLE_PPM) -> ChargeLine:
    """Return what a quantity costs at a price, or at a part of it; rounded half to even once."""
    check(found.per > 0, f"price {found.sku} must be for at least one unit")
    return ChargeLine(
        sku=found.sku,
        meter=meter,
        quantity=quantity,
        unit_price_neur=found.unit_price_neur,
        per=found.per,
        amount_neur=divide_round_half_even(
            quantity * found.unit_price_neur * factor_ppm, found.per * WHOLE_PPM
        ),
        factor_ppm=factor_ppm,
    )
