# SPDX-License-Identifier: Apache-2.0
"""Rows of ./dev bench kvstore that a cluster gives: the second turn of a chat, at workers that never saw the first."""

import http.client
import json
import os
import random
import statistics
import time

import clusters
import peers
from rows import make_row

HISTORY = 2000  # Tokens of the first turn, its answer among them; nearly.
ANSWER = 64
# One token each with a space before, so that prompts of as many words have as many tokens.
WORDS = ("river stone house water light garden morning winter summer music paper window silver "
         "forest market island bridge station mountain village teacher doctor friend table").split()
THREADS = 2
WORKER = ["--threads", THREADS, "--kv-bytes", "512MiB"]
# What lies in a request's time before its first token, in the words of the trace.
SPANS = ["queue", "reserve", "start", "store_wait", "fetch", "unpack", "prefill_wait", "prefill",
         "first_token", "first_step"]


def words(seed, count):
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(count))


class Chats(clusters.Processes):
    """A cluster of one prefill and one decode worker, which can be replaced, and a store node."""

    def __enter__(self):
        super().__enter__()
        self.lives = 0
        self.start_store()
        return self

    def start_store(self):
        self.start("store", "kvstore", "--name", "store", "--coordinator", self.server, "--host-bytes",
                   "1GiB", "--disk", self.path / "disk", "--disk-bytes", "2GiB", "--socket-folder",
                   self.path, "--metrics-port", 0)

    def flush_to_disk(self):
        """The node begins anew with what its disk has; none of it is in memory, the kernel's either."""
        self.stop("store")
        for file in (self.path / "disk").iterdir():
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.start_store()
        self.wait_for("the coordinator's hearing of the store's blocks", self.store_is_known)

    def store_is_known(self):
        stores = self.status()["stores"]
        return bool(stores) and stores[0]["state"] == "ready" and any(
            tier["copies"] for tier in stores[0]["tiers"])

    def new_workers(self):
        """Empty pools; the ones before are gone."""
        if self.lives:
            self.stop(f"prefill-{self.lives}", f"decode-{self.lives}")
        self.lives += 1
        for role in ("decode", "prefill"):
            self.start_worker(role, f"{role}-{self.lives}", *WORKER)
        self.wait_for("verifying the workers' pair", lambda: any(
            pair["transport"] for pair in self.status()["pairs"]
            if pair["prefill"] == f"prefill-{self.lives}"))

    def ask(self, messages, tokens):
        """(TTFT in ms, answer, usage)"""
        host, _, port = self.info["coordinator"]["http"].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=300)
        body = {"model": self.model_name, "messages": messages, "max_tokens": tokens, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}
        begin, first, text, usage = time.monotonic(), None, "", None
        connection.request("POST", "/v1/chat/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise peers.PeerError(f"a request failed: {response.read()[:500]}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                if choice["delta"].get("content"):
                    first = first or time.monotonic()
                    text += choice["delta"]["content"]
        connection.close()
        if first is None:
            raise peers.PeerError("a request ended without a token")
        return 1000 * (first - begin), text, usage


def first_turn(seed):
    return [{"role": "user", "content": words(seed, HISTORY - ANSWER - 40)}]


def second_turn(seed, answer, question):
    return [*first_turn(seed), {"role": "assistant", "content": answer},
            {"role": "user", "content": words(question, 12)}]


def second_turns(chats, answers, tier):
    """TTFT of every chat's second turn, each beside one of the same length that nobody has seen."""
    warm, cold, spans = [], [], []
    for seed, answer in enumerate(answers):
        for sample, first in ((cold, f"{tier} cold {seed}"), (warm, seed)):
            ttft, _, usage = chats.ask(second_turn(first, answer, tier), 2)
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            peers.say(f"{tier}, {'second turn' if sample is warm else 'cold'}: TTFT {ttft:.1f} ms, "
                      f"{cached} of {usage['prompt_tokens']} tokens were there")
            if seed == 0:
                continue  # Connections are made, memory is touched.
            if (cached > HISTORY / 2) != (sample is warm):
                raise peers.PeerError(f"{cached} of {usage['prompt_tokens']} tokens were reused: "
                                      f"this is no {'second turn' if sample is warm else 'cold run'}")
            sample.append(ttft)
        spans.append(chats.last_spans())
    return warm, cold, spans[1:]


def say_spans(tier, spans):
    """Where the time of second turns went: medians of the trace's spans."""
    for name in SPANS:
        times = [sum(s["ms"] for s in request if s["name"] == name) for request in spans]
        if any(times):
            moved = [sum(s["bytes"] for s in request if s["name"] == name) for request in spans]
            rate = f", {statistics.median(moved) / 1e6:.1f} MB" if any(moved) else ""
            peers.say(f"  {tier}: {name:14}{statistics.median(times):8.2f} ms{rate}")


def rows(args):
    result = []
    with Chats() as chats:
        chats.new_workers()
        answers = [chats.ask(first_turn(seed), ANSWER)[1] for seed in range(args.rounds + 1)]
        for tier, name, target, empty in (("host", "a node's memory", 0.15, None),
                                          ("disk", "a node's disk", 0.35, chats.flush_to_disk)):
            if empty is not None:
                empty()
            chats.new_workers()
            warm, cold, spans = second_turns(chats, answers, tier)
            say_spans(tier, spans)
            result.append(make_row(f"TTFT, second turn, {HISTORY:,} tokens of history in {name}", "ms",
                                   warm, "cold", cold, target, at_most=True))
    return result
