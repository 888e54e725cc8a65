# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench kvstore: a second turn whose history is behind a slow link, fetched beside computing it."""

import concurrent.futures
import statistics
import sys

import peers
import reuse_rows
from rows import make_row

sys.path.insert(0, str(peers.ROOT / "tests"))
import namespaces  # noqa: E402  (of the tests, which need hosts, too)

# The link takes so much of the time of a cold run: TTFT beside that of who imports first is to be so much at
# most. With much more of it nothing is fetched, since the plan knows better.
SHARES = {0.5: 0.8, 0.25: 0.9, 0.02: 1.1}
WAYS = {"import first": ["--import-first"], "beside": []}


class FarChats(reuse_rows.Chats):
    """The same with the node on a host of its own."""

    def __init__(self, network):
        self.network = network

    def start(self, name, *arguments):
        if name == "coordinator":
            arguments += ("--host", self.network.addresses["near"])
        if name != "store":
            return super().start(name, *arguments)
        arguments += ("--host", self.network.addresses["far"], "--transfer", "tcp")
        return super().start(name, *arguments, within=self.network.inside("far"))

    def new_workers(self, prefill_flags=()):
        self.prefill_flags = prefill_flags
        super().new_workers()

    def start_worker(self, role, name, *arguments):
        flags = self.prefill_flags if role == "prefill" else ()
        return super().start_worker(role, name, *arguments, *flags)


def measure(args, network):
    network.enter("near")
    result, spans = [], {}
    with FarChats(network) as chats:
        chats.new_workers()
        answers = [chats.ask(reuse_rows.first_turn(seed), reuse_rows.ANSWER)[1] for seed in range(args.rounds + 1)]
        chats.new_workers()
        cold = statistics.median(chats.ask(reuse_rows.first_turn(f"cold {i}"), 2)[0] for i in range(3))
        stored = sum(int(tier["bytes"]) for tier in chats.status()["stores"][0]["tiers"] if "HOST" in tier["tier"])
        bytes_each = stored / (args.rounds + 4)
        for share, target in SHARES.items():
            rate = 8 * bytes_each / (share * cold / 1000)
            network.limit("far", f"{int(rate)}bit")
            times = {}
            for way, flags in WAYS.items():
                chats.new_workers(flags)
                chats.ask(reuse_rows.second_turn(0, answers[0], f"{share} {way}"), 2)  # The link is measured.
                name = f"{share:.0%}, {way}"
                times[way], times["cold"], spans[name] = reuse_rows.second_turns(chats, answers, name)
                reuse_rows.say_spans(name, spans[name])
            work = f"TTFT, second turn over a link of {rate / 1e6:.0f} Mbit/s: {share:.0%} of a cold run's"
            result.append(make_row(work, "ms", times["beside"], "import first", times["import first"], target,
                                   at_most=True))
            result.append(make_row(work, "ms", times["beside"], "cold", times["cold"], 1, at_most=True))
    return result


def rows(args):
    why_not = namespaces.why_not()
    if why_not is not None:
        raise peers.PeerError(why_not)
    with namespaces.Network(["near", "far"]) as network, concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(measure, args, network).result()  # A thread that is on the host.
