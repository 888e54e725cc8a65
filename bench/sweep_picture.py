# SPDX-License-Identifier: Apache-2.0
"""A picture: what chunked prefill on one worker trades, beside workers of their own."""

import math

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 470, 80, 70, 730, 400
BLUE, ORANGE, GREY, INK = "#2563eb", "#ea580c", "#d4d4d8", "#27272a"


def ticks(top, count=6):
    """Round numbers from 0 to at least `top`."""
    step = 10 ** math.floor(math.log10(top / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor * count >= top)
    return [step * i for i in range(math.ceil(top / step) + 1)]


def draw(medians):
    """`medians`: {"split" or chunk: (TTFT p50, ITL p99)}, in milliseconds; the picture as SVG."""
    across = ticks(max(ttft for ttft, _ in medians.values()))
    up = ticks(max(itl for _, itl in medians.values()))

    def at(ttft, itl):
        return (LEFT + (RIGHT - LEFT) * ttft / across[-1], BOTTOM - (BOTTOM - TOP) * itl / up[-1])

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="{INK}">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']

    def text(x, y, words, anchor="middle", more=""):
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>')

    text(LEFT, 30, "Long prompts beside running streams", "start", 'font-size="18" font-weight="600"')
    text(LEFT, 50, "both cores in one worker, by chunk size, or one core for each of two workers", "start")
    for tick in across:
        x, _ = at(tick, 0)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{BOTTOM}" stroke="{GREY}"/>')
        text(x, BOTTOM + 20, f"{tick:g}")
    for tick in up:
        _, y = at(0, tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="{GREY}"/>')
        text(LEFT - 8, y + 4, f"{tick:g}", "end")
    text((LEFT + RIGHT) / 2, BOTTOM + 45, "TTFT p50 of the prompts, ms")
    text(25, (TOP + BOTTOM) / 2, "ITL p99 of the streams, ms",
         more=f'transform="rotate(-90 25 {(TOP + BOTTOM) / 2:.1f})"')
    chunks = [chunk for chunk in medians if chunk != "split"]
    line = " ".join("{:.1f},{:.1f}".format(*at(*medians[chunk])) for chunk in chunks)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    for side, point in medians.items():
        x, y = at(*point)
        colour = ORANGE if side == "split" else BLUE
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        text(x + 9, y + 18 if side == "split" else y - 7,
             "two workers" if side == "split" else f"chunks of {side}", "start",
             f'fill="{colour}"')
    return "\n".join([*parts, "</svg>", ""])
