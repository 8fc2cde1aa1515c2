"""Numbers as people read them, and HTML in which nothing from the data is taken for markup."""

from collections.abc import Iterable, Sequence
from html import escape

from echofed.simulations.report.results import Measured, Number

MISSING = "–"


def number(value: Number, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, without an exponent where it reads well."""
    if value is None:
        return MISSING
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa} × 10{_superscript(int(exponent))}"
    decimals = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return decimals.replace("-", "−")


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def fixed(value: Number, decimals: int = 2) -> str:
    """Return a metric with a fixed number of decimals."""
    return MISSING if value is None else f"{value:.{decimals}f}".replace("-", "−")


def interval(bounds: tuple[Number, Number] | None, decimals: int = 2) -> str:
    """Return `low to high`."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return MISSING
    return f"{fixed(bounds[0], decimals)} to {fixed(bounds[1], decimals)}"


def measured(value: Measured, decimals: int = 2) -> str:
    """Return a metric with its interval in brackets."""
    if value.metric is None:
        return MISSING
    bounds = interval(value.interval, decimals)
    return fixed(value.metric, decimals) + ("" if bounds == MISSING else f" ({bounds})")


def data_unit(largest: float) -> tuple[float, str]:
    """Return the unit that keeps the largest of some numbers of bytes readable, and its name."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "bytes"


def data_size(count: float) -> str:
    """Return a number of bytes in the unit that keeps it readable."""
    size, unit = data_unit(count)
    return f"{count / size:.3g} {unit}"


def duration(seconds: Number) -> str:
    """Return a time span in seconds, minutes or hours."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it belongs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def text(content: object) -> str:
    """Return anything as HTML text; control characters, which HTML has no place for, become spaces."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in str(content)), quote=True)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, numeric_from: int = 1, total: bool = False
) -> str:
    """Return a table; every cell is escaped.

    Args:
        head: the names of the columns.
        rows: the cells.
        caption: what the table shows.
        numeric_from: columns from here on are aligned as numbers.
        total: whether the last row sums up the others.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if column >= numeric_from else "" for column in range(len(row)))
        return "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    body = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
    if total and body:
        body[-1] = body[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<div class="table"><table>\n<caption>{text(caption)}</caption>\n<thead><tr>{cells(head, "th")}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>\n"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return names with their values, both escaped."""
    return f'<dl class="facts">{"".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)}</dl>\n'
