#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The KV store: what a second turn waits for, and blocks moved beside memcpy, Redis and Mooncake Store.

    ./dev bench kvstore [--json FILE] [--rows REGEX] [--rounds N] [--trace FILE] [--quality FILE]

Every figure is the median of its rounds, ours and the peers' taking turns, with the lowest and highest
beside it. `target` is what the ratio must be at least, or with "<=" at most. --trace: a trace in
Mooncake's format, for the rows of eviction policies; --quality: the record of `penstock quality`, for
those of what codecs cost. About 10 minutes. Run it on a machine that does
nothing else, with two CPUs at least.

JSON rows: as of ./dev bench engine.
"""

import argparse
import re
import sys

import peers
import policy_rows
import reuse_rows
import rows as table
import store_rows

PARTS = {"reuse": reuse_rows.rows, **store_rows.PARTS, **policy_rows.PARTS}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev bench kvstore",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    table.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="of every row (5)")
    parser.add_argument("--trace", metavar="FILE", help="replay it for the rows of eviction policies")
    parser.add_argument("--quality", metavar="FILE", help="what penstock quality has recorded")
    args = table.parse(parser)
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    return args


def main():
    args = parse_args()
    table.warn_if_busy()
    rows, status = [], 0
    try:
        for name, part in PARTS.items():
            if not re.search(args.rows, name):
                continue
            peers.say(name)
            try:
                rows += part(args)
            except peers.PeerError as error:
                print(f"bench/kvstore.py: {name}: {error}", file=sys.stderr)
                status = 1
    except KeyboardInterrupt:
        status = 130
    if not rows:
        return status or 1
    table.print_table(rows)
    if args.json:
        table.write_json(args.json, rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
