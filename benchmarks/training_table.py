"""The table of the training benchmark: a line for each row and number of micro batches."""

from collections.abc import Mapping
from typing import Any

HEAD = ("row", "micro", "tok/s", "of ours", "MFU", "peak GiB", "wanted")


def lines_of(
    name: str, row: Any, record: dict[str, Any], ours: dict[str, float]
) -> list[list[str]]:
    """Returns the cells of a row; `ours` has our tokens per second in BF16 by micro batches."""
    if "error" in record:
        return [[row.what, "", "failed", *[""] * (len(HEAD) - 3)]]
    lines = []
    for number, measured in record.get("micro_batches", {}).items():
        rate, mfu, first = measured["tokens_per_second"], measured["mfu"], not lines
        base = record["ours"]["tokens_per_second"] if "ours" in record else ours.get(number)
        wanted = f"{row.wanted:,}" if row.wanted and first else ""
        if wanted and rate < row.wanted:
            wanted += " missed"
        shape = f"{number} x {measured['micro_batch_size'] * measured['sequence_length']}"
        lines.append(
            [
                row.what,
                shape,
                f"{rate:,.0f}",
                f"{rate / base:.3f}" if base else "",
                "" if mfu is None else f"{100 * mfu:.1f}%",
                f"{measured['peak_memory_gib'] or 0:.1f}",
                wanted,
            ]
        )
    return lines


def kernel_times(record: dict[str, Any]) -> list[str]:
    """Returns a line for each kernel that was timed."""
    lines = []
    for kernel in ("convolution", "norm"):
        for name, case in record.get(kernel, {}).items():
            times = {way: case[way]["forward_and_backward_us"] for way in ("kernel", "compiled")}
            lines.append(
                f"{kernel}, {name}: forward and backward {times['kernel']} us, "
                f"plain PyTorch compiled {times['compiled']} us"
            )
    for name, layer in record.get("scan", {}).items():
        measured = layer.get("kernels", layer)  # plain PyTorch has nothing beside
        spent = [measured[key]["sum"] for key in ("forward_us", "forward_and_backward_us")]
        lines.append(f"scan, {name}: {spent[0]} us forward, {spent[1]} us with backward")
    return lines


def failures(content: dict[str, Any]) -> list[str]:
    """Returns a line for each row that failed."""
    return [
        f"{name} failed: {record['error'].strip().splitlines()[-1]}"
        for name, record in content["rows"].items()
        if "error" in record
    ]


def kinds(content: dict[str, Any]) -> list[str]:
    """Returns where the milliseconds of the profiled rows go."""
    lines = []
    for name, record in content["rows"].items():
        for number, measured in record.get("micro_batches", {}).items():
            if spent := measured.get("kinds_ms"):
                parts = ", ".join(f"{kind} {ms:.0f}" for kind, ms in spent.items() if ms >= 0.5)
                whole = measured["step_ms"]["median"]
                lines.append(f"{name}, {number} micro batches, {whole:.0f} ms a step: {parts}")
    return lines


def table(content: dict[str, Any], rows: Mapping[str, Any]) -> str:
    """Returns the table of all records, errors of kernels, and milliseconds by kind."""
    ours = {
        number: measured["tokens_per_second"]
        for number, measured in content["rows"].get("bf16", {}).get("micro_batches", {}).items()
    }
    cells = [list(HEAD)]
    for name, record in content["rows"].items():
        cells += lines_of(name, rows[name], record, ours)
    widths = [max(len(line[place]) for line in cells) for place in range(len(HEAD))]
    text = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    errors = content["rows"].get("errors", {}).get("worst", {})
    text += [
        f"{kernel}: error against float64 {found['forward']:.5f} forward, "
        f"{found['gradients']:.5f} gradients"
        for kernel, found in errors.items()
    ]
    text += kernel_times(content["rows"].get("kernels", {}))
    head = f"{content['device']}, commit {content['commit']}"
    return "\n".join([head, *text, *failures(content), *kinds(content)])
