#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The OpenAI API of a whole cluster on this machine, asked by OpenAI's own client and by curl:

    tests/http_test.py PENSTOCK

A coordinator with a gateway, one prefill and one decode worker serve a tiny model. Needs openai; exits
with 77 where it is missing.
"""

import concurrent.futures
import json
import random
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

try:
    import openai
except ImportError:
    sys.exit(77)

from processes import MODEL, WAIT_S, Process, await_true

CONTEXT = 512
PENSTOCK = None
CHAT = [{"role": "user", "content": "hello there"}]


def start(folder, name, *command):
    return Process(folder, name, [PENSTOCK, name, *command])


def get(path):
    """Status and body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(f"http://{HTTP}{path}", timeout=WAIT_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def running():
    """Requests that the gateway has, as its metrics tell."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=WAIT_S) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith("penstock_gateway_requests_live")]
    return sum(float(line.split()[-1]) for line in found)


class HttpTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=f"http://{HTTP}/v1", api_key="none", max_retries=0,
                                   timeout=WAIT_S)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def complete(self, **fields):
        fields = {"model": "tiny", "prompt": "once", "max_tokens": 8, "seed": 7} | fields
        return self.client.completions.create(**fields)

    def chat(self, **fields):
        fields = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "seed": 7} | fields
        return self.client.chat.completions.create(**fields)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["tiny"])
        self.assertEqual(self.client.models.retrieve("tiny").id, "tiny")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_grpc_is_told_of_its_mistake(self):
        for command in (["generate", "hello"], ["status"]):
            done = subprocess.run([PENSTOCK, command[0], "--server", HTTP, *command[1:]], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=WAIT_S, check=False)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(HTTP, done.stderr)
            self.assertIn("OpenAI clients are answered there", done.stderr)

    def test_health(self):
        self.assertEqual(get("/health")[0], 200)
        self.assertEqual(get("/ready")[0], 200)

    def test_chat(self):
        answer = self.chat(extra_body={"ignore_eos": True})
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, "tiny")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 8)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 8)
        self.assertGreaterEqual(answer.usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_stream_is_the_whole_answer_in_parts(self):
        whole = self.chat(n=2)
        chunks = list(self.chat(n=2, stream=True, stream_options={"include_usage": True}))
        for index in range(2):
            text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices
                           if c.index == index)
            self.assertEqual(text, whole.choices[index].message.content)
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)
        self.assertEqual({c.finish_reason for chunk in chunks for c in chunk.choices} - {None},
                         {c.finish_reason for c in whole.choices})
        whole = self.complete()
        text = "".join(c.text for chunk in self.complete(stream=True) for c in chunk.choices)
        self.assertEqual(text, whole.choices[0].text)

    def test_seed_and_cache(self):
        prompt = "a long prompt that fills more than one block of tokens, again and again. " * 3
        first = self.complete(prompt=prompt)

        def cached():
            again = self.complete(prompt=prompt)
            self.assertEqual(first.choices[0].text, again.choices[0].text)
            return again.usage.prompt_tokens_details.cached_tokens > 0
        await_true("the prompt's KV is reused", cached)  # Once the coordinator has heard of it.
        salted = self.complete(prompt=prompt, extra_body={"cache_salt": "other"})
        self.assertEqual(salted.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(salted.choices[0].text, first.choices[0].text)

    def test_n_and_prompts(self):
        self.assertEqual([c.index for c in self.complete(n=3).choices], [0, 1, 2])
        both = self.complete(prompt=["once", [5, 6, 7]], n=2, temperature=0)
        self.assertEqual([c.index for c in both.choices], [0, 1, 2, 3])
        self.assertEqual(both.choices[0].text, self.complete(temperature=0).choices[0].text)
        tokens = self.complete(prompt=[5, 6, 7], temperature=0)
        self.assertEqual(both.choices[2].text, tokens.choices[0].text)

    def test_logprobs(self):
        whole = self.chat(logprobs=True, top_logprobs=3, temperature=0)
        content = whole.choices[0].logprobs.content
        self.assertEqual(len(content), whole.usage.completion_tokens)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].logprob, token.logprob)  # temperature 0
        streamed = [t for chunk in self.chat(logprobs=True, top_logprobs=3, temperature=0, stream=True)
                    for c in chunk.choices if c.logprobs for t in c.logprobs.content]
        self.assertEqual(streamed, content)
        legacy = self.complete(logprobs=2, temperature=0).choices[0].logprobs
        self.assertEqual(len(legacy.tokens), len(legacy.token_logprobs))
        self.assertEqual(legacy.text_offset[0], 0)

    def test_stop(self):
        text = self.complete(max_tokens=40, extra_body={"ignore_eos": True}).choices[0].text
        letters = [c for c in text[1:] if c.isascii() and c.isprintable()]
        stop = letters[len(letters) // 2]
        cut = self.complete(max_tokens=40, stop=[stop], extra_body={"ignore_eos": True})
        self.assertEqual(cut.choices[0].text, text[:text.index(stop)])
        self.assertEqual(cut.choices[0].finish_reason, "stop")

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.complete(model="other")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(prompt="word " * 2000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertIn(str(CONTEXT), caught.exception.message)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(response_format={"type": "json_object"})
        self.assertEqual(caught.exception.param, "response_format")

    def test_request_id_comes_back(self):
        raw = self.client.completions.with_raw_response.create(
            model="tiny", prompt="x", max_tokens=1, extra_headers={"X-Request-Id": "mine-1"})
        self.assertEqual(raw.headers["x-request-id"], "mine-1")
        self.assertEqual(raw.parse().id, "cmpl-mine-1")

    def test_deadline(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            self.complete(max_tokens=400, extra_body={"ignore_eos": True},
                          extra_headers={"X-Request-Timeout-Ms": "1"})
        self.assertEqual(caught.exception.status_code, 504)

    def test_hang_ups_leave_nothing_behind(self):
        for _ in range(4):
            with self.complete(max_tokens=400, stream=True,
                               extra_body={"ignore_eos": True}) as stream:
                next(iter(stream))
        # And one that leaves before its first token.
        body = json.dumps({"model": "tiny", "prompt": "once", "max_tokens": 400,
                           "ignore_eos": True}).encode()
        host, port = HTTP.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as one:
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                        b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await_true("no request is left", lambda: running() == 0)

    def test_many_at_once(self):
        want = self.complete().choices[0].text
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(lambda _: self.complete().choices[0].text, range(64)))
        self.assertEqual(set(texts), {want})

    def test_curl(self):
        run = subprocess.run(
            ["curl", "-sS", "-N", "--max-time", str(WAIT_S), f"http://{HTTP}/v1/chat/completions",
             "-H", "Content-Type: application/json", "-d",
             json.dumps({"model": "tiny", "messages": CHAT, "stream": True, "max_tokens": 4})],
            capture_output=True, check=True)
        events = run.stdout.decode().split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        for event in events[:-2]:
            json.loads(event.removeprefix("data: "))

    def test_hostile_bytes(self):
        host, port = HTTP.rsplit(":", 1)
        rng = random.Random(7)
        for _ in range(50):
            junk = rng.randbytes(rng.randrange(1, 3000))
            if rng.random() < 0.5:
                junk = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                        b"\r\nContent-Length: %d\r\n\r\n" % len(junk)) + junk
            with socket.create_connection((host, int(port)), WAIT_S) as one:
                one.sendall(junk)
                one.shutdown(socket.SHUT_WR)
                said = b""
                while part := one.recv(65536):
                    said += part
            self.assertTrue(said == b"" or said.startswith(b"HTTP/1.1 4"), said)
        self.assertEqual(get("/health")[0], 200)


def main():
    global PENSTOCK, HTTP, METRICS
    PENSTOCK = sys.argv.pop(1)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        coordinator = start(folder, "coordinator", "--serve", f"tiny={MODEL}", "--http-port", "0",
                              "--metrics-port", "0")
        processes = [coordinator]
        try:
            info = coordinator.ready()
            HTTP, METRICS = info["http"], info["metrics"]
            for role in ("prefill", "decode"):
                processes.append(start(folder, role, "--coordinator", info["grpc"], "--model", MODEL,
                                         "--model-name", "tiny", "--name", role, "--threads", "1",
                                         "--socket-folder", folder))
            await_true("ready", lambda: get("/ready")[0] == 200)
            result = unittest.main(exit=False, verbosity=2).result
        finally:
            codes = [process.end() for process in reversed(processes)]
        if not result.wasSuccessful() or any(codes):
            print("ended with", codes, *coordinator.log, sep="\n", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
