"""How results look on a terminal."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.progress import human

if TYPE_CHECKING:
    from pipelines.dedup.compare import Comparison, Piece

console = Console(highlight=False)
TEXT_CHARACTERS = 1_200
PLACES = 8
"""Differences of a pair that are shown."""
SHARED, CUT = "green", "red"
EARLIER = ("retractions", "revivals", "redropped", "amendments")
"""What a run against an index says of earlier documents."""


def print_manifest(manifest: dict[str, Any], out: str) -> None:
    """Prints a dataset's funnel."""
    recipe = manifest["recipe"]
    title = f"{recipe['name']}  {recipe['fingerprint'][:12]}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("rule", "documents", "text", "left"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    left = manifest["documents_in"]
    table.add_row("in", f"{left:,}", human(manifest["bytes_in"], "B"), "100.0%")
    for rule in manifest["rules"]:
        left -= rule["dropped"]
        share = left / max(1, manifest["documents_in"])
        size = human(rule["dropped_bytes"], "B")
        table.add_row(rule["name"], f"-{rule['dropped']:,}", f"-{size}", f"{share:.1%}")
    kept = f"{manifest['kept']:,}"
    table.add_row("[bold]kept[/]", f"[bold]{kept}[/]", human(manifest["bytes_kept"], "B"), "")
    console.print(table)
    for cut in manifest["cuts"]:
        spans = f"{cut['spans']:,} spans of {cut['documents']:,} documents"
        console.print(f"cut by {cut['step']}: {human(cut['bytes'], 'B')} ({cut['name']}), {spans}")
    records = ", ".join(f"{name} {n:,}" for name, n in manifest["records"].items())
    console.print(f"records: {escape(records)}", soft_wrap=True)
    if manifest["unread_files"]:
        first = ", ".join(manifest["unread_examples"][:3])
        number = f"{manifest['unread_files']:,}"
        console.print(f"files that no reader claims: {number} ({escape(first)})", soft_wrap=True)
    if against := manifest.get("against"):
        _print_changes(against)
    console.print(f"dataset: {escape(out)}")


def _print_changes(against: dict[str, Any]) -> None:
    changes = ", ".join(f"{against[kind]:,} {kind}" for kind in EARLIER)
    console.print(f"earlier documents: {changes}", soft_wrap=True)
    total = f"{against['total_kept']:,} of {against['total_documents_in']:,}"
    console.print(f"kept of all snapshots: {total}", soft_wrap=True)


def print_takedown(manifest: dict[str, Any], out: str) -> None:
    """Prints what a takedown took down and what followed."""
    down = manifest["taken_down"]
    total = down["listed"] + down["copies"]
    console.print(
        f"taken down: {total:,} documents, {down['listed']:,} of the list and {down['copies']:,} "
        f"copies",
        soft_wrap=True,
    )
    _print_changes(manifest["against"])
    console.print(f"which and why: {escape(out)}/takedown.json", soft_wrap=True)
    console.print(
        "the index holds their texts no more; the datasets of its snapshots still do: compact the "
        "chain into a new dataset, then remove them",
        soft_wrap=True,
    )


def print_why(result: dict[str, Any], comparison: "Comparison | None" = None) -> None:
    """Prints what became of a document, a duplicate and its kept copy side by side.

    Args:
        result: as `pipelines.explain.why` returns it.
        comparison: of a near-duplicate with its kept copy; only where they differ is shown.
    """
    ledger = result["ledger"]
    origin = ledger["origin"]
    place = f"{origin['path']}"
    if origin["offset"] is not None:
        place += f", bytes {origin['offset']:,} + {origin['length'] or 0:,}"
    console.print(f"[bold]{result['id']}[/]  {result['outcome']}")
    console.print(f"source {ledger['source']}: {escape(place)}")
    if ledger["url"]:
        console.print(escape(ledger["url"]))
    if ledger["error"]:
        console.print(f"error: {escape(ledger['error'])}")
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "signal", "value", "drops if", ""):
        table.add_column(name, overflow="fold")
    for rule in result["rules"]:
        question = ""
        if "comparison" in rule:
            question = f"{rule['comparison']} {rule['threshold']}"
        value = rule["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value or "")
        verdict = "[red]broken[/]" if rule["broke"] else ""
        table.add_row(
            rule["name"], rule.get("column", ""), escape(shown), escape(question), verdict
        )
    console.print(table)
    for cut in result["cuts"]:
        _print_cut(cut)
    if comparison:
        _print_comparison(result, comparison)
    elif result["kept_copy"]:
        copy = result["kept_copy"]
        titles = _titles(result)
        _side_by_side(titles, [(_beginning(result["text"]), _beginning(copy["text"]))])
    elif result["text"]:
        console.print(Panel(_beginning(result["text"]), title="text"))


def _print_cut(cut: dict[str, Any]) -> None:
    """Prints the spans of a document that a step cut, each with what stayed around it."""
    size, number = human(cut["bytes"], "B"), cut["spans"]
    table = Table(title=f"{cut['step']} cut {size}, spans: {number:,}", title_justify="left")
    for name in ("bytes", "first in", "what stayed around it"):
        table.add_column(name, overflow="fold")
    for span in cut["shown"]:
        place = f"{span['source']}: {span['path']}" if "path" in span else ""
        holder = span.get("matched_id") or f"{span.get('benchmark')} {span.get('item')}"
        around = Text()
        if "before" in span:
            gone = Text(f"[{span['end'] - span['start']:,} bytes]", CUT)
            around = Text(_plain(span["before"])) + gone + Text(_plain(span["after"]))
        table.add_row(f"{span['start']:,}-{span['end']:,}", Text(f"{holder}\n{place}"), around)
    console.print(table)
    if number > len(cut["shown"]):
        console.print(f"and {number - len(cut['shown']):,} more spans")


def _print_comparison(result: dict[str, Any], comparison: "Comparison") -> None:
    from pipelines.dedup.compare import rows  # loads numba, which most results do not need

    places, more = rows(comparison, PLACES)
    _side_by_side(_titles(result), [(_marked(left), _marked(right)) for left, right in places])
    shared, either = comparison.num_shared, comparison.num_shingles
    unit = "words" if comparison.unit == "word" else "characters"
    console.print(
        f"[{SHARED}]in both[/]: {shared:,} of {either:,} runs of {comparison.size} {unit}"
        f" ({comparison.jaccard:.4f}); ... left out"
        + (f"; {more:,} more places differ" if more else "")
    )


def _titles(result: dict[str, Any]) -> tuple[str, str]:
    copy, similarity = result["kept_copy"]["id"], result["ledger"]["similarity"]
    return f"this document {result['id'][:12]}", f"kept copy {copy}, similarity {similarity:.3f}"


def _side_by_side(titles: tuple[str, str], places: list[tuple[Text, Text]]) -> None:
    table = Table(expand=True, show_lines=True)
    for title in titles:
        table.add_column(title, ratio=1, overflow="fold")
    for row in places:
        table.add_row(*row)
    console.print(table)


def _beginning(text: str | None) -> Text:
    if text is None:
        return Text("its text was not kept", "dim")
    cut = Text("...", "dim") if len(text) > TEXT_CHARACTERS else Text()
    return Text(_plain(text[:TEXT_CHARACTERS])) + cut


def _marked(pieces: "list[Piece]") -> Text:
    styles = {"shared": SHARED, "own": "", "left out": "dim"}
    return Text.assemble(*((_plain(piece.text), styles[piece.kind]) for piece in pieces))


def _plain(text: str) -> str:
    """Returns a text that cannot steer the terminal: control characters as their pictures."""
    return text.translate({code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"})


def print_examples(rows: list[dict[str, Any]], rule: str) -> None:
    """Prints documents that a rule dropped."""
    if not rows:
        console.print(f"rule {rule} dropped nothing")
    for row in rows:
        title = f"{row['id']}  {row['source']}: {row['origin']['path']}"
        console.print(Panel(escape((row["text"] or "")[:TEXT_CHARACTERS]), title=escape(title)))


def print_result(result: dict[str, Any], line: str) -> None:
    """Prints the plain values of a result and where it is."""
    for name, value in result.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            console.print(
                f"{name}: {value:,.6g}" if isinstance(value, float) else f"{name}: {value:,}"
            )
    console.print(escape(line))


def print_wheel(result: dict[str, Any], out: str) -> None:
    """Prints the stages of a flywheel and where everything is."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("result")
    for stage in result["stages"]:
        plain = {k: v for k, v in stage["result"].items() if isinstance(v, (int, float, str))}
        text = ", ".join(
            f"{name} {value:,.6g}" if isinstance(value, (int, float)) else f"{name} {value[:12]}"
            for name, value in plain.items()
        )
        table.add_row(stage["name"], f"{stage['seconds']:.1f}", escape(text))
    console.print(table)
    for name, place in result["folders"].items():
        places = place.values() if isinstance(place, dict) else [place]
        console.print(f"{name}: {escape(', '.join(f'{out}/{place}' for place in places))}")
    console.print(f"[bold]report: {escape(result['report'])}[/]")
