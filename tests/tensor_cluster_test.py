#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clusters whose workers compute a model in stages and shards, as many as each likes:

    tests/tensor_cluster_test.py PENSTOCK

Answers have the tokens and log-probabilities of `penstock generate` on one device with as many partial sums:
over every pair, and while a decode worker is killed amid some.
Standard library only.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

import up_test as base
from up_test import MODEL, ROOT, Up, run

SUMS = 4
PROMPTS = [f"{i}: the mill stands where water comes by a pipe; " * (i + 1) for i in range(5)]
# So long that stages compute it in portions, in a chunk that has it whole.
LONG = "water by a pipe " * 25
WORKER = f"tp_sum: {SUMS}, kv_bytes: 4MiB, sequences: 4"


def ask_command(prompt, tokens, *more):
    return ["generate", "--raw", "--temperature", 0.7, "--seed", 3, "--max-tokens", tokens, "--ignore-eos", "--json",
            "--logprobs", 1, *more, prompt]


def parse(out):
    """What does not depend on who answered."""
    answer = json.loads(out)
    return answer["text"], answer["logprobs"]


def ask(server, prompt, tokens=12):
    done = run(*ask_command(prompt, tokens, "--server", server))
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def alone(prompt, tokens=12):
    """The answer of one engine on one shard."""
    done = run(*ask_command(prompt, tokens, "--model", MODEL, "--tp", 1, "--tp-sum", SUMS, "--threads", 1))
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


class TensorClusterTest(unittest.TestCase):
    def start(self, prefill, decodes, transfer):
        """Each by the stages of a worker and the shards of each stage."""
        def worker(split):
            stages, shards = split
            return f"{{pp: {stages}, tp: {shards}, threads: {stages * shards}, {WORKER}"

        up = Up(f"model: {MODEL}\nblock_tokens: 16\npolicy: round-robin\ntransfer: [{transfer}]\n"
                f"prefill: {worker(prefill)}, chunk_tokens: {512 if prefill[0] > 1 else 64}}}\ndecode:\n"
                + "".join(f"- {worker(split)}, chunk_tokens: 64}}\n" for split in decodes)
                + "kvstore: {host_bytes: 64MiB}\n")
        self.addCleanup(up.__exit__)
        return up, up.wait_ready()["grpc"]

    def workers(self, up):
        done = run("status", "--server", up.endpoints()["grpc"], "--json")
        return json.loads(done.stdout)["workers"] if done.returncode == 0 else []

    def test_any_pair_gives_the_same_answers(self):
        want = [alone(prompt) for prompt in [*PROMPTS, LONG]]
        for prefill, decodes, transfer in (((1, 2), [(1, 1), (1, 1)], "shm"), ((1, 1), [(1, 4), (1, 2)], "tcp"),
                                           ((2, 1), [(1, 4), (3, 1)], "shm"), ((3, 2), [(2, 1), (1, 2)], "tcp")):
            with self.subTest(prefill=prefill, decodes=decodes):
                up, server = self.start(prefill, decodes, transfer)
                self.assertEqual([ask(server, prompt) for prompt in [*PROMPTS, LONG]], want)
                trace = run("trace", "--server", server)
                self.assertRegex(trace.stdout, rf"(?m)^prefill-1 -> decode-[12] by {transfer}: ", trace.stderr)
                self.check_kill(up, server)
                self.assertEqual(up.end(), 0)

    def check_kill(self, up, server):
        """A decode worker dies amid answers, of which some are its own. They go on."""
        for turn in range(5):
            prompts = [f"{turn}: {prompt} again" for prompt in PROMPTS]
            want = [run(*text_command(prompt, "--model", MODEL, "--tp-sum", SUMS, "--threads", 1)).stdout
                    for prompt in prompts]
            answers = [Answer(prompt, server) for prompt in prompts]
            for answer in answers:
                answer.begun.wait(base.WAIT_S)
            decodes = [up.pid_of(f"decode-{i}") for i in (1, 2)]
            for pid in decodes:
                os.kill(pid, signal.SIGSTOP)
            # They take turns: with two or more left, one is the first worker's.
            amid = sum(answer.process.poll() is None for answer in answers) >= 2
            os.kill(decodes[0], signal.SIGKILL)
            os.kill(decodes[1], signal.SIGCONT)
            self.assertEqual([answer.end() for answer in answers], want)
            if amid:
                return
        self.fail("all answers were over before a worker was killed")


def text_command(prompt, *more):
    return ["generate", "--raw", "--temperature", 0.7, "--seed", 3, "--max-tokens", 400, "--ignore-eos", *more, prompt]


class Answer:
    """One that is being printed."""

    def __init__(self, prompt, server):
        self.process = subprocess.Popen([base.PENSTOCK, *map(str, text_command(prompt, "--server", server))],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.begun, self.text = threading.Event(), b""
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        while piece := self.process.stdout.read1():
            self.text += piece
            self.begun.set()
        self.begun.set()

    def end(self):
        self.reader.join(base.WAIT_S)
        self.process.stdout.close()
        assert self.process.wait(base.WAIT_S) == 0
        return self.text.decode()


class PlanTest(unittest.TestCase):
    def plan(self, text, *command):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "c.yaml"
            file.write_text(text, encoding="utf-8")
            return run(*[file if part == "FILE" else part for part in command])

    def test_a_split_that_the_model_does_not_take(self):
        text = f"model: {MODEL}\nprefill: {{tp: 3}}\ndecode: {{tp: 3}}\n"
        dry = self.plan(text, "up", "FILE", "--dry-run")
        self.assertIn("# decode-1: tensor parallel: 3 shards do not divide ", dry.stdout)
        doctor = self.plan(text, "doctor", "FILE")
        self.assertEqual(doctor.returncode, 1)
        self.assertRegex(doctor.stdout, r"fault +prefill-1 \(line 2\): tensor parallel: 3 shards do not divide ")
        text = f"model: {MODEL}\nprefill: {{pp: 4}}\ndecode: {{pp: 3}}\n"
        dry = self.plan(text, "up", "FILE", "--dry-run")
        self.assertIn("# prefill-1: pipeline parallel: 4 stages are more than the 3 layers\n", dry.stdout)
        self.assertNotIn("# decode-1", dry.stdout)

    def test_without_its_model_a_plan_says_what_is_missing(self):
        dry = run("up", ROOT / "deploy/1x8-h100-4p4d.yaml", "--dry-run")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        self.assertEqual(len(dry.stdout.splitlines()), 10, dry.stdout)
        self.assertRegex(dry.stderr, r"^warning: memory is planned once the models are here: .*"
                                     r"/models/Meta-Llama-3-8B-Instruct")

    def test_stages_on_gpus(self):
        """Two of a model that one of the GPUs cannot hold; the first one has the embedding, the last one the head."""
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model"
            write_standin(model, 64, 8, 8192, 28672, 80)
            text = (f"model: {model}\nprefill: {{pp: 2, tp: 2, device: 'cuda:0,1,2,3', kv_bytes: 20GiB}}\n"
                    "decode: {pp: 4, tp: 2, device: cuda, kv_bytes: 20GiB}\n")
            dry = self.plan(text, "up", "FILE", "--dry-run")
            self.assertEqual(dry.returncode, 0, dry.stderr)
            stage = r"stage {} on each of 2 GPUs [\d.]+ GB of weights, {} GB of KV and [\d.]+ .B for steps"
            stages = [stage.format(i, r"5\.37") for i in range(2)]
            self.assertRegex(dry.stdout, r"(?m)^# prefill-1 on cuda:0,1,2,3: " + "; ".join(stages)
                             + r", of device memory; up to 21\.47 GB of the host's ")
            self.assertRegex(dry.stdout, r"(?m)^# decode-1 on cuda: .*; "
                             + stage.format(3, r"2\.68") + ", of device memory; ")
            self.assertRegex(dry.stdout, r"penstock prefill .* --device cuda:0,1,2,3 --pp 2 --tp 2 ")

    def test_files_for_real_gpus(self):
        """With a stand-in for the model: its shapes, few words, and no weights."""
        for name, heads, processes, memory in (
                ("1x8-h100-4p4d.yaml", (32, 8, 4096, 14336, 32), {None: 8},
                 r"decode-4 on cuda:7: 13\.96 GB of weights, 51\.54 GB of KV and .* for steps, of device memory; "),
                ("2x8-h100-tp4.yaml", (64, 8, 8192, 28672, 80), {"a": 2, "b": 2},
                 r"prefill-\d on cuda:0,1,2,3: on each of 4 GPUs 34\.23 GB of weights, 21\.47 GB of KV and .* for steps, "
                 r"of device memory; up to 117\.4 MB for links of kind nccl; up to 85\.90 GB of the host's "),
                ("1x8-a100-pcie-tp2-pp2.yaml", (64, 8, 8192, 28672, 80), {None: 2},
                 r"decode-1 on cuda.*: stage 0 on each of 2 GPUs 34\.23 GB of weights, 26\.84 GB of KV and .* for steps; "
                 r"stage 1 on each of 2 GPUs 34\.23 GB of weights, 26\.84 GB of KV and .* for steps, of device memory; ")):
            with tempfile.TemporaryDirectory() as folder:
                model = pathlib.Path(folder) / "model"
                write_standin(model, *heads)
                text = re.sub(r"(?m)^model: \S+", f"model: {model}", (ROOT / "deploy" / name).read_text(encoding="utf-8"))
                for host, workers in processes.items():
                    with self.subTest(name, host=host):
                        dry = self.plan(text, "up", "FILE", "--dry-run", *(["--host", host] if host else []))
                        self.assertEqual(dry.returncode, 0, dry.stderr)
                        plans = re.findall(r"(?m)^# .* on cuda.*$", dry.stdout)
                        self.assertEqual(len(plans), workers, dry.stdout)
                        self.assertRegex("\n".join(plans), memory)


def write_standin(folder, qo_heads, kv_heads, d_model, ffn, layers):
    """A folder as a Llama's, of which the weights are a hole in the file."""
    tiny = MODEL
    folder.mkdir()
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    config.update(num_attention_heads=qo_heads, num_key_value_heads=kv_heads, hidden_size=d_model,
                  intermediate_size=ffn, num_hidden_layers=layers, head_dim=128, max_position_embeddings=8192,
                  tie_word_embeddings=False, torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in os.listdir(tiny):
        if name.startswith(("tokenizer", "generation", "special")):
            (folder / name).write_bytes((tiny / name).read_bytes())
    vocab = config["vocab_size"]
    shapes = {"model.embed_tokens.weight": [vocab, d_model], "lm_head.weight": [vocab, d_model],
              "model.norm.weight": [d_model]}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": [d_model], at + "post_attention_layernorm.weight": [d_model],
                   at + "self_attn.q_proj.weight": [qo_heads * 128, d_model],
                   at + "self_attn.k_proj.weight": [kv_heads * 128, d_model],
                   at + "self_attn.v_proj.weight": [kv_heads * 128, d_model],
                   at + "self_attn.o_proj.weight": [d_model, qo_heads * 128],
                   at + "mlp.gate_proj.weight": [ffn, d_model], at + "mlp.up_proj.weight": [ffn, d_model],
                   at + "mlp.down_proj.weight": [d_model, ffn]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    base.PENSTOCK = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
