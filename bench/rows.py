# SPDX-License-Identifier: Apache-2.0
"""The rows that benchmarks print: one piece of work, ours beside a peer's.

A row has work, ours, unit, peer, theirs, ratio, target, met, ours_range, theirs_range, and optionally
limit, limit_share and note. `target` is what `ratio` must be at least, or at most with at_most.
"""

import json
import os
import pathlib
import re
import statistics
import sys

import peers


def warn_if_busy():
    busy = os.getloadavg()[0]
    if busy > 0.5:
        peers.say(f"this machine is busy (load {busy:.1f}): only ratios mean anything, and not much")


def add_arguments(parser):
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only work that this matches")


def parse(parser):
    args = parser.parse_args()
    try:
        re.compile(args.rows)
    except re.error as error:
        parser.error(f"--rows: {error}")
    return args


def run(program, parts, args):
    """Rows of those (name, part) whose name --rows matches, printed and written; an exit status."""
    warn_if_busy()
    rows, status = [], 0
    try:
        for name, part in parts:
            if not re.search(args.rows, name):
                continue
            peers.say(name)
            try:
                rows += part(args)
            except peers.PeerError as error:
                print(f"{program}: {name}: {error}", file=sys.stderr)
                status = 1
    except KeyboardInterrupt:
        status = 130
    if not rows:
        return status or 1
    print_table(rows)
    if args.json:
        write_json(args.json, rows)
    return status


def make_row(work, unit, ours, peer, theirs, target, at_most=False, lower_is_better=False, note=None):
    """`ours`, `theirs`: the samples. The ratio is that of the medians, ours / theirs, or with
    `lower_is_better` theirs / ours; it is to be at least `target`, or with `at_most` at most."""
    a, b = statistics.median(ours), statistics.median(theirs)
    ratio = b / a if lower_is_better else a / b
    return {"work": work, "ours": a, "unit": unit, "peer": peer, "theirs": b, "ratio": ratio,
            "target": target, "at_most": at_most, "limit": None, "limit_share": None,
            "ours_range": [min(ours), max(ours)], "theirs_range": [min(theirs), max(theirs)],
            "met": ratio <= target if at_most else ratio >= target, "note": note}


def write_json(path, rows):
    pathlib.Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def print_table(rows):
    head = ("work", "ours", "unit", "peer", "theirs", "ratio", "target", "limit")
    table = [head]
    for r in rows:
        def figure(key, r=r):
            low, high = r[key + "_range"]
            spread = f" [{low:.4g}-{high:.4g}]" if low != high else ""
            return f"{r[key]:.4g}{spread}"

        limit = f"{r['limit_share']:.0%} of {r['limit']}" if r["limit"] else "-"
        bound = "<= " if r.get("at_most") else ""
        table.append((r["work"], figure("ours"), r["unit"], r["peer"], figure("theirs"),
                      f"{r['ratio']:.3g}",
                      f"{bound}{r['target']:g} {'met' if r['met'] else 'MISSED'}",
                      r.get("note") or limit))
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
