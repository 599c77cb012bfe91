"""Commands about the catalogue: what there is, a model's card, where it fits, what its use costs."""

from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.words import carbon, energy, euros, memory, moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moulin.domain.control import ModelInfo, ModelPage
    from moulin.domain.outlook import Figure, FitRow, ModelFit, PriceAt, PriceExplained

app = typer.Typer(rich_markup_mode=None)
prices = typer.Typer(help="What the use of a model costs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="MODEL", help="Model of the catalogue.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, data: Data = None, is_json: IsJson = False) -> None:
    """List the models of the catalogue and what is here of each."""
    if context.invoked_subcommand is not None:
        return
    with connect(data) as client:
        page = client.models.list()
    answer(page, is_json=is_json, show=lambda: _show_list(page))


@app.command()
def show(model: Name, data: Data = None, is_json: IsJson = False) -> None:
    """Show a model's card: licence, provenance, digests, sources, languages, limits, life."""
    with connect(data) as client:
        info = client.models.get(model)
    answer(info, is_json=is_json, show=lambda: _show_card(info))


@app.command()
def fit(
    model: Name,
    *,
    context: Annotated[
        int, typer.Option("--context", min=0, help="Tokens of context (4096, or the model's).")
    ] = 0,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=256, help="Requests that run at once.")
    ] = 1,
    is_verbose: Annotated[
        bool, typer.Option("--sources", help="Show where each figure comes from.")
    ] = False,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Show where a model fits: memory, longest context, tokens/s, price and gCO2e.

    A speed is measured (from this factory's own finished requests) or estimated at most by what
    memory and arithmetic of the machine class allow; --sources shows the formula with its numbers.

    \b
    Examples:
      moulin models fit smollm2-135m-instruct
      moulin models fit qwen2.5-coder-0.5b-instruct --context 32768 --parallel 16 --sources
    """
    with connect(data) as client:
        found = client.models.fit(model, context_tokens=context, parallel_requests=parallel)
    answer(found, is_json=is_json, show=lambda: _show_fit(found, is_verbose=is_verbose))


@app.command()
def accept(
    model: Name,
    licence: Annotated[str, typer.Argument(metavar="LICENCE", help="Id of its terms.")],
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Accept the licence of a model for your organisation; who and when is recorded."""
    with connect(data, project) as client:
        found = client.models.accept_licence(model, licence)

    def shown() -> None:
        when = moment(found.at_ns)
        write(f"{found.licence} accepted for {found.organisation} by {found.by} at {when}")

    answer(found, is_json=is_json, show=shown)


@prices.command()
def explain(
    model: Name,
    *,
    tokens_input: Annotated[
        int, typer.Option("--input", min=0, help="Input tokens of the example.")
    ] = 1000,
    tokens_output: Annotated[
        int, typer.Option("--output", min=0, help="Output tokens of the example.")
    ] = 500,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Explain a model's price: from the price book to an example, with its energy and carbon.

    \b
    Examples:
      moulin price explain smollm2-135m-instruct
      moulin price explain smollm2-135m-instruct --input 200 --output 50
    """
    with connect(data) as client:
        found = client.models.price(model, tokens_input=tokens_input, tokens_output=tokens_output)
    answer(found, is_json=is_json, show=lambda: _show_price(found))


def _show_list(page: "ModelPage") -> None:
    table(
        ("model", "parameters>", "size>", "licence", "stage", "context>", "sources", "here"),
        (
            (
                model.name,
                f"{model.parameters / 10**6:.0f} M",
                memory(model.variants[0].size_bytes) if model.variants else "-",
                model.licence,
                model.stage,
                str(model.context_max_tokens),
                ", ".join(
                    dict.fromkeys(s.split(":")[0] for v in model.variants for s in v.sources)
                ),
                model.fetch.state,
            )
            for model in page.items
        ),
        empty="the catalogue is empty",
    )


def _show_card(info: "ModelInfo") -> None:
    for name, value in _card(info):
        if value:
            write(f"{name + ':':14}{value}")
    for variant in info.variants:
        digest = f"sha256:{variant.sha256}" if variant.sha256 else "stated by the hub, then pinned"
        write(f"\n{variant.name}: {variant.precision}, {memory(variant.size_bytes)}")
        hint = f" (not installed: {variant.runtime_hint})" if variant.runtime_hint else ""
        write(f"  runtime:    {variant.runtime}{hint}")
        write(f"  provenance: {variant.provenance}\n  digest:     {digest}")
        for source in variant.sources:
            write(f"  source:     {source}")


def _card(info: "ModelInfo") -> "Iterator[tuple[str, str]]":
    days = info.lifecycle
    planned = (
        ("active", days.active_from),
        ("deprecated", days.deprecated_from),
        ("retired", days.retired_from),
    )
    yield "model", f"{info.name} ({info.title})"
    yield "publisher", info.publisher
    yield "licence", f"{info.licence} {info.licence_url}".strip()
    if info.licence_terms:
        said = [f"{each.organisation} by {each.by}, {moment(each.at_ns)}" for each in info.accepted]
        yield "to accept", f"{info.licence_terms}; accepted: {'; '.join(said) or 'by nobody yet'}"
    yield "stage", info.stage
    yield "days", ", ".join(f"{word} from {day}" for word, day in planned if day)
    yield "successor", days.successor
    yield "parameters", f"{info.parameters / 10**6:.0f} M, context {info.context_max_tokens} tokens"
    yield "languages", ", ".join(info.languages)
    yield "card", info.card
    for limit in info.known_limits:
        yield "limit", limit
    yield "here", info.fetch.state


def _show_fit(found: "ModelFit", *, is_verbose: bool) -> None:
    say(
        f"{found.model}: {found.context_tokens} tokens of context, "
        f"{found.parallel_requests} request(s) at once"
    )
    table(
        (
            *("variant", "runtime", "machine", "devices>", "needs>", "has>", "context max>"),
            *("tokens/s>", "how", "in €/M>", "out €/M>", "out gCO2e/M>", "fits"),
        ),
        (_fit_line(row) for row in found.rows),
    )
    for row in found.rows if is_verbose else ():
        write(f"\n{row.variant} on {row.machine_class}")
        for name, figure in _figures(row):
            write(f"  {name}: {told(figure)}")
    for note in found.notes:
        say(note)


def _fit_line(row: "FitRow") -> tuple[str, ...]:
    output, price = row.speed.output_milli, row.per_million
    return (
        row.variant,
        row.runtime,
        row.machine_class,
        str(row.devices) if row.is_fitting else "-",
        memory(row.needed_bytes),
        memory(row.available_bytes) if row.available_bytes else "?",
        str(row.context_max_tokens) if row.context_max_tokens else "-",
        f"{output.amount / 1000:.4g}" if output.amount else "?",
        output.basis.replace("estimated by", "at most"),
        _euros(price.input_price),
        _euros(price.output_price),
        _grams(price.output_carbon),
        "yes" if row.is_fitting else f"no: {row.problem}",
    )


def _figures(row: "FitRow") -> "Iterator[tuple[str, Figure]]":
    yield "tokens/s of one request, thousandths", row.speed.output_milli
    yield "tokens/s of all requests, thousandths", row.speed.output_total_milli
    yield "prompt tokens/s, thousandths", row.speed.input_milli
    per = row.per_million
    yield "n€ per million input tokens", per.input_price
    yield "n€ per million output tokens", per.output_price
    yield "mJ per million input tokens", per.input_energy
    yield "mJ per million output tokens", per.output_energy
    yield "ng CO2e per million input tokens", per.input_carbon
    yield "ng CO2e per million output tokens", per.output_carbon


def told(figure: "Figure") -> str:
    """Return a figure with its basis, origin and doubt."""
    if figure.basis == "unknown":
        return "not known"
    doubt = (
        f" (class {figure.quality}, ± {figure.uncertainty_ppm / 10_000:g} %)"
        if figure.quality
        else ""
    )
    return f"{figure.amount}, {figure.basis} {figure.origin}{doubt}"


def _euros(figure: "Figure") -> str:
    return "?" if figure.basis == "unknown" else f"{figure.amount / 10**9:.4g}"


def _grams(figure: "Figure") -> str:
    if figure.basis == "unknown":
        return "?"
    return f"{figure.amount / 10**9:.3g} ({figure.quality} ± {figure.uncertainty_ppm / 10_000:g} %)"


def _show_price(found: "PriceExplained") -> None:
    book = found.price_book
    write(f"{found.model}: {found.tokens_input} input and {found.tokens_output} output tokens")
    if book:
        write(f"price book {book}, in force since {moment(found.effective_from_ns)}")
        write(f"  {found.price_book_digest}")
    table(
        ("line", "quantity>", "unit price>", "per>", "amount>"),
        (
            (
                f"{line.sku} ({line.meter})",
                str(line.quantity),
                euros(line.unit_price_neur),
                str(line.per),
                euros(line.amount_neur),
            )
            for line in found.lines
        ),
        empty="no price in force: the use is free",
    )
    write(f"charge: {euros(found.amount_neur)}")
    for place in found.places:
        _show_place(place)
    for rule in found.rules:
        say(rule)


def _show_place(place: "PriceAt") -> None:
    write(f"\nin zone {place.zone} ({place.site}, {place.country}) on {place.machine_class}")
    _show_amount("energy", place.energy, energy)
    _show_amount("carbon, location based", place.carbon_location, carbon)
    _show_amount("carbon, market based", place.carbon_market, carbon)
    if place.energy_cost_neur >= 0:
        write(f"  energy costs the operator {euros(place.energy_cost_neur)}")
    if place.pue_source:
        write(f"  PUE {place.pue_ppm / 10**6:g}: {place.pue_source}")


def _show_amount(name: str, figure: "Figure", words: "Callable[[int], str]") -> None:
    if figure.basis == "unknown":
        write(f"  {name}: not known")
        return
    doubt = f"class {figure.quality}, ± {figure.uncertainty_ppm / 10_000:g} %"
    write(f"  {name}: {words(figure.amount)} ({doubt})")
    write(f"    {figure.basis} {figure.origin}")
