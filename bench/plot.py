"""The figures as pictures: plain SVG by hand, since two charts are no reason for a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.peers import PEERS
from bench.results import Results

__all__ = ["draw_costs", "draw_growth"]

COLOURS = ("#c0392b", "#e08e79", "#2c3e50", "#2980b9", "#16a085", "#8e44ad", "#7f8c8d", "#b7950b", "#566573")
CASES = (("20 msg/s", "#2c3e50"), ("1 in flight", "#95a5a6"), ("32 in flight", "#c0392b"))


def draw_costs(results: Results, file: Path) -> bool:
    """Bars of a delivery's cost for each peer. False, and no file, when that was not measured."""
    peers = [name for name in PEERS if results.row("fanout", CASES[0][0], name)]
    if not peers:
        return False
    left, bar, width = 190, 14, 760
    group = bar * len(CASES) + 12
    height = 60 + group * len(peers)
    most = max(_cost(results, "fanout", case, peer) or 0 for peer in peers for case, _ in CASES)
    scale = (width - left - 70) / most
    parts = [_text(left, 24, "CPU µs a delivery, 1,000 subscribers, 128 B, publishing included", weight=True)]
    for n, (case, colour) in enumerate(CASES):
        x = left + n * 120
        parts.append(_box(x, 34, 10, 10, colour))
        parts.append(_text(x + 15, 43, case))
    for row, peer in enumerate(peers):
        top = 58 + row * group
        parts.append(_text(left - 10, top + group / 2 - 2, _plain(PEERS[peer].title), anchor="end"))
        for n, (case, colour) in enumerate(CASES):
            cost = _cost(results, "fanout", case, peer)
            if cost is None:
                continue
            y, length = top + n * bar, cost * scale
            parts.append(_box(left, y, length, bar - 2, colour))
            parts.append(_text(left + length + 5, y + 10, f"{cost:.2f}"))
    _save(file, width, height, parts)
    return True


def draw_growth(results: Results, file: Path) -> bool:
    """A delivery's cost over the number of subscribers, both logarithmic. False when not measured."""
    lines = {peer: _growth(results, peer) for peer in PEERS}
    lines = {peer: points for peer, points in lines.items() if len(points) > 1}
    if not lines:
        return False
    width, height, left, bottom, right = 760, 400, 60, 350, 560
    xs = [math.log10(x) for points in lines.values() for x, _ in points]
    ys = [math.log10(y) for points in lines.values() for _, y in points]
    low_x, high_x, low_y, high_y = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low_x) / (high_x - low_x)
        up = (math.log10(y) - low_y) / (high_y - low_y)
        return left + across * (right - left), bottom - up * (bottom - 50)

    parts = [_text(left, 24, "CPU µs a delivery, 32 in flight, by subscribers of one channel", weight=True)]
    for power in range(low_y, high_y + 1):
        _, y = place(10**low_x, 10.0**power)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, f"{10.0**power:g}", anchor="end"))
    for power in range(math.ceil(low_x), math.floor(high_x) + 1):
        x, _ = place(10.0**power, 10.0**low_y)
        parts.append(_text(x, bottom + 18, f"{10**power:,}", anchor="middle"))
    for n, (peer, points) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_box(right + 16, 52 + n * 20, 12, 12, colour))
        parts.append(_text(right + 34, 62 + n * 20, _plain(PEERS[peer].title)))
    _save(file, width, height, parts)
    return True


def _cost(results: Results, workload: str, case: str, peer: str) -> float | None:
    row = results.row(workload, case, peer)
    return None if row is None else row.median("cpu_us")


def _growth(results: Results, peer: str) -> list[tuple[float, float]]:
    points = []
    for row in results.rows:
        number, _, unit = row.case.partition(" ")
        cost = row.median("cpu_us")
        if (row.workload, row.peer, unit) == ("growth", peer, "subscribers") and cost:
            points.append((float(number.replace(",", "")), cost))
    return sorted(points)


def _plain(title: str) -> str:
    return title.replace("`", "")


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: bool = False) -> str:
    bold = ' font-weight="bold"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{bold}>{escape(text)}</text>'


def _save(file: Path, width: int, height: int, parts: Sequence[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    head += 'font-family="sans-serif" font-size="12" fill="#222">'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    file.write_text("\n".join([head, background, *parts, "</svg>"]) + "\n")
