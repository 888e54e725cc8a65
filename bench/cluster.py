#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cluster on this machine beside what it replaces: one engine, memcpy, other transfer libraries.

    ./dev bench cluster [--json FILE] [--svg FILE] [--rows REGEX] [--rounds N]

Real model (SmolLM2) where computing is what is measured, paced workers where it is not. Every figure is
the median of its rounds, ours and the peers' taking turns, with the lowest and highest beside it.
`target` is what the ratio must be at least, or with "<=" at most. --svg draws the sweep of chunk sizes.
About 30 minutes. Run it on a machine that does nothing else, with two CPUs at least.

JSON rows: as of ./dev bench engine.
"""

import argparse
import sys

import cluster_rows
import hosts
import move_rows
import rows as table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev bench cluster",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    table.add_arguments(parser)
    parser.add_argument("--svg", metavar="FILE", help="draw the sweep of chunk sizes there")
    parser.add_argument("--rounds", type=int, default=3, help="of every row (3)")
    args = table.parse(parser)
    if args.rounds < 1:
        parser.error("--rounds is at least 1")
    return args


def main():
    parts = [*cluster_rows.PARTS.items(), *move_rows.PARTS.items(), ("scale", hosts.rows)]
    return table.run("bench/cluster.py", parts, parse_args())


if __name__ == "__main__":
    sys.exit(main())
