#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The KV store: what a second turn waits for, and blocks moved beside memcpy, Redis and Mooncake Store.

    ./dev bench kvstore [--json FILE] [--rows REGEX] [--rounds N] [--trace FILE] [--quality FILE]

Every figure is the median of its rounds, ours and the peers' taking turns, with the lowest and highest
beside it. `target` is what the ratio must be at least, or with "<=" at most. --trace: a trace in
Mooncake's format, for the rows of eviction policies; --quality: the record of `penstock quality`, for
those of what codecs cost. The part "beside" needs root, for a slow link. About 8 minutes. Run it on a machine that does
nothing else, with two CPUs at least.

JSON rows: as of ./dev bench engine.
"""

import argparse
import pathlib
import sys

import beside_rows
import policy_rows
import reuse_rows
import rows as table
import store_rows

PARTS = {"reuse": reuse_rows.rows, "beside": beside_rows.rows, **store_rows.PARTS, **policy_rows.PARTS}


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
    for file in filter(None, (args.trace, args.quality)):
        if not pathlib.Path(file).is_file():
            parser.error(f"there is no {file}")
    return args


def main():
    return table.run("bench/kvstore.py", PARTS.items(), parse_args())


if __name__ == "__main__":
    sys.exit(main())
