"""The quality report as one HTML page: its plots are inline SVG, and nothing is loaded from anywhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from echofed.client.ingest.quality_report import BINS, GroupQuality, QualityReport, Spread, label_counts

_WIDTH = 460
_BAR = 20
_NAME = 190
_MOST_BARS = 40
_STYLE = """
:root { --ink: #1b2126; --soft: #5b6670; --line: #dfe4e8; --accent: #0072b2; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 32px 48px; color: var(--ink);
  font: 15px/1.5 "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 28px; margin: 16px 0 4px; } h2 { font-size: 20px; margin: 32px 0 10px; border-bottom: 2px solid var(--ink); }
p { margin: 0 0 12px; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 24px 40px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 6px; } svg { display: block; width: 100%; height: auto; }
svg text { font: 12px "Segoe UI", "Liberation Sans", sans-serif; fill: var(--ink); } svg rect { fill: var(--accent); }
svg line { stroke: var(--line); } svg .soft { fill: var(--soft); }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { border-bottom-color: var(--ink); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Quality of what was ingested</title>'
    f"<style>{_STYLE}</style></head><body>"
)


def quality_page(report: QualityReport) -> str:
    """Return the report as HTML; it loads nothing, runs nothing and names no patient, exam or file."""
    found = (
        f"{report.frames:,} frames of {report.clips:,} clips, {report.exams:,} exams and {report.patients:,} patients."
    )
    return "".join(
        [
            _HEAD,
            f"<h1>Quality of what was ingested</h1><p>{found} This page stays on the site.</p>",
            _section(
                "Labels",
                _bars("Patients by label", report.label_patients),
                _bars("Frames by label", report.label_frames),
            ),
            _counted("Exams and labels", {} if report.labels is None else label_counts(report.labels)),
            _section(
                "Devices",
                _bars("Frames by device", {one.device: one.frames for one in report.devices}),
                _bars("Doubtful", report.doubts()),
            ),
            _table([*report.devices, *report.groups]),
            _section("Brightness", *(_histogram(one) for one in report.devices[:_MOST_BARS])),
            _section("Not accepted, by reason", _bars("Instances", report.quarantined)),
            "</body></html>\n",
        ]
    )


def _section(title: str, *figures: str) -> str:
    drawn = "".join(figure for figure in figures if figure)
    return f'<h2>{escape(title)}</h2><div class="figures">{drawn or "<p>None.</p>"}</div>'


def _counted(title: str, counts: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td></tr>' for name, count in counts.items()
    )
    return f'<h2>{escape(title)}</h2><div class="table"><table>{rows}</table></div>' if counts else ""


def _bars(title: str, counts: Mapping[str, int]) -> str:
    """Return horizontal bars, one a name; beyond a number of them, the rest in one."""
    entries = list(counts.items())
    if len(entries) > _MOST_BARS:
        rest = sum(count for _, count in entries[_MOST_BARS - 1 :])
        entries = [*entries[: _MOST_BARS - 1], (f"{len(counts) - _MOST_BARS + 1} others", rest)]
    if not entries:
        return ""
    most, room = max(count for _, count in entries), _WIDTH - _NAME - 60
    parts = []
    for place, (name, count) in enumerate(entries):
        top, length = place * _BAR, room * count / max(most, 1)
        parts.append(
            f"<g><title>{escape(name)}: {count:,}</title>"
            f'<text x="{_NAME - 8}" y="{top + 14}" text-anchor="end">{escape(_short(name))}</text>'
            f'<rect x="{_NAME}" y="{top + 4}" width="{length:.1f}" height="{_BAR - 7}"/>'
            f'<text class="soft" x="{_NAME + length + 6:.1f}" y="{top + 14}">{count:,}</text></g>'
        )
    return _figure(title, _WIDTH, len(entries) * _BAR, parts)


def _histogram(group: GroupQuality) -> str:
    """Return the frames of a device by brightness."""
    most, height, step = max(*group.brightness_bins, 1), 110, _WIDTH / BINS
    parts = [f'<line x1="0" y1="{height}" x2="{_WIDTH}" y2="{height}"/>']
    for place, count in enumerate(group.brightness_bins):
        tall = (height - 12) * count / most
        said = f"{place * 256 // BINS} to {(place + 1) * 256 // BINS - 1}: {count:,} frames"
        parts.append(
            f"<g><title>{said}</title>"
            f'<rect x="{place * step + 1:.1f}" y="{height - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"/></g>'
        )
    for level in (0, 64, 128, 192):
        parts.append(f'<text class="soft" x="{level / 256 * _WIDTH:.1f}" y="{height + 15}">{level}</text>')
    parts.append(f'<text class="soft" x="{_WIDTH}" y="{height + 15}" text-anchor="end">255</text>')
    return _figure(f"{group.device}: {group.frames:,} frames by mean brightness", _WIDTH, height + 20, parts)


def _figure(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    drawing = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def _table(groups: Sequence[GroupQuality]) -> str:
    names = ("Device", "Label", "Sizes")
    numbers = ("Patients", "Exams", "Clips", "Frames", "Spacing, mm", "Brightness", "Clipped, %", "Sharpness")
    head = "".join(f"<th>{name}</th>" for name in names) + "".join(
        f'<th class="number">{name}</th>' for name in numbers
    )
    body = "".join(_row(group) for group in sorted(groups, key=lambda one: (one.device, one.label or "")))
    said = "Median, and in brackets the quarter and three quarters of the frames."
    return f'<p>{said}</p><div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _row(group: GroupQuality) -> str:
    sizes = list(group.sizes.items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    texts = (group.device, "all" if group.label is None else group.label, shown)
    counts = (f"{count:,}" for count in (group.patients, group.exams, group.clips, group.frames))
    values = (
        "unknown" if group.spacing_mm is None else _range(group.spacing_mm, 3),
        _range(group.brightness, 0),
        _range(group.clipped_share, 1, 100),
        _range(group.sharpness, 0),
    )
    cells = [f"<td>{escape(text)}</td>" for text in texts]
    cells += [f'<td class="number">{text}</td>' for text in (*counts, *values)]
    return f"<tr>{''.join(cells)}</tr>"


def _range(spread: Spread, decimals: int, times: float = 1) -> str:
    middle, low, high = (
        f"{one * times:.{decimals}f}" for one in (spread.middle, spread.quarter, spread.three_quarters)
    )
    return f"{middle} ({low} to {high})"


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
