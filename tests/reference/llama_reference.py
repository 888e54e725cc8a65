#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Slow, plain float64 reference for Llama models in GGUF files.

The oracle of the engine's numbers: it shares no code with the engine, dequantizes every weight with
the `gguf` package and computes in float64. Needs numpy and gguf.

    llama_reference.py MODEL.gguf --tokens 504,3575,282 --generate 24     prints a golden record
    llama_reference.py MODEL.gguf --tokens-file IDS --logits OUT          f32 [tokens, vocab]

Shapes: hidden states (T, d_model); K and V of a layer (T, kv_heads, head_dim). GGUF stores the rows
of Q and K permuted for interleaved rotary pairs (x[2i], x[2i+1]). No rope scaling, no window.
"""

import argparse
import json
import sys

import numpy as np
from gguf import GGUFReader, dequantize


class LlamaReference:
    def __init__(self, path):
        reader = GGUFReader(path)
        field = {key: value.contents() for key, value in reader.fields.items()
                 if key.startswith(("general.", "llama."))}
        if field["general.architecture"] != "llama":
            raise ValueError(f"{path} is a {field['general.architecture']} model, not llama")
        self.layers = field["llama.block_count"]
        self.d_model = field["llama.embedding_length"]
        self.qo_heads = field["llama.attention.head_count"]
        self.kv_heads = field["llama.attention.head_count_kv"]
        self.eps = field["llama.attention.layer_norm_rms_epsilon"]
        self.theta = field["llama.rope.freq_base"]
        self.head_dim = field.get("llama.rope.dimension_count", self.d_model // self.qo_heads)
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64)
                  for t in reader.tensors}
        self.w.setdefault("output.weight", self.w["token_embd.weight"])

    def rms(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * weight

    def rope(self, x, positions):
        """x: (T, heads, head_dim), pairs interleaved; positions: (T,)."""
        half = self.head_dim // 2
        inverse = self.theta ** (-np.arange(half) * 2.0 / self.head_dim)
        angle = positions[:, None] * inverse[None, :]
        cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    def attention(self, h, prefix, positions, past):
        """(T, d_model), and the layer's (K, V) with the new tokens."""
        count, w = h.shape[0], self.w
        q = (h @ w[prefix + "attn_q.weight"].T).reshape(count, self.qo_heads, self.head_dim)
        k = (h @ w[prefix + "attn_k.weight"].T).reshape(count, self.kv_heads, self.head_dim)
        v = (h @ w[prefix + "attn_v.weight"].T).reshape(count, self.kv_heads, self.head_dim)
        q, k = self.rope(q, positions), self.rope(k, positions)
        if past is not None:
            k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
        group = self.qo_heads // self.kv_heads
        score = np.einsum("thd,shd->hts", q, np.repeat(k, group, 1)) / np.sqrt(self.head_dim)
        visible = np.arange(k.shape[0])[None, None, :] <= positions[None, :, None]
        score = np.where(visible, score, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        out = np.einsum("hts,shd->thd", weight, np.repeat(v, group, 1)).reshape(count, -1)
        return out @ w[prefix + "attn_output.weight"].T, (k, v)

    def forward(self, tokens, cache=None):
        """Logits (T, vocab) of `tokens` after those in `cache`, a list of (K, V), and the new cache."""
        w = self.w
        cache = cache if cache is not None else [None] * self.layers
        start = 0 if cache[0] is None else cache[0][0].shape[0]
        positions = np.arange(start, start + len(tokens), dtype=np.float64)
        x = w["token_embd.weight"][np.asarray(tokens)]
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            h = self.rms(x, w[prefix + "attn_norm.weight"])
            attended, cache[layer] = self.attention(h, prefix, positions, cache[layer])
            x = x + attended
            h = self.rms(x, w[prefix + "ffn_norm.weight"])
            gate, up = h @ w[prefix + "ffn_gate.weight"].T, h @ w[prefix + "ffn_up.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[prefix + "ffn_down.weight"].T
        return self.rms(x, w["output_norm.weight"]) @ w["output.weight"].T, cache

    def greedy(self, tokens, count):
        """`count` tokens, and by how much each beat the second best."""
        logits, cache = self.forward(tokens)
        chosen, margins = [], []
        for _ in range(count):
            top = np.partition(logits[-1], -2)[-2:]
            margins.append(float(top[1] - top[0]))
            chosen.append(int(logits[-1].argmax()))
            logits, cache = self.forward([chosen[-1]], cache)
        return chosen, margins


def golden(model, tokens, count):
    logits, _ = model.forward(tokens)
    z = logits[-1] - logits[-1].max()
    log_sum = np.log(np.exp(z).sum())
    chosen, margins = model.greedy(tokens, count)
    return {"ids": tokens,
            "next_top20": [[int(t), round(float(z[t] - log_sum), 6)] for t in np.argsort(-z)[:20]],
            "greedy": chosen, "greedy_margin": [round(m, 4) for m in margins]}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", help="ids with commas between")
    parser.add_argument("--tokens-file", help="ids, one a line")
    parser.add_argument("--generate", type=int, default=24)
    parser.add_argument("--logits", help="file to write")
    args = parser.parse_args()
    if (args.tokens is None) == (args.tokens_file is None):
        parser.error("either --tokens or --tokens-file")
    if args.tokens is not None:
        tokens = [int(t) for t in args.tokens.split(",")]
    else:
        with open(args.tokens_file, encoding="ascii") as file:
            tokens = [int(line) for line in file]
    model = LlamaReference(args.model)
    if args.logits is None:
        print(json.dumps(golden(model, tokens, args.generate)))
    else:
        model.forward(tokens)[0].astype(np.float32).tofile(args.logits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
