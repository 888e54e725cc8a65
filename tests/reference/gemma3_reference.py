#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Slow, plain float64 reference for Gemma 3 text models in GGUF files.

As llama_reference.py: shares no code with the engine (nor with that file), dequantizes every weight
with the `gguf` package and computes in float64. Needs numpy and gguf.

    gemma3_reference.py MODEL.gguf --tokens-file IDS --logits OUT          f32 [tokens, vocab]

What sets Gemma 3 apart: embeddings are scaled by sqrt(d_model); RMS norms (GGUF stores 1 + w) come
before and after both halves of a layer, and on every head of Q and K; rotary pairs are halves,
(x[i], x[i + head_dim / 2]); of six layers five see a window only, with a rope base of their own; the
MLP's gate is GELU (tanh form); the head is the embedding table. No rope scaling (sizes above 1B).
"""

import argparse
import math
import sys

import numpy as np
from gguf import GGUFReader, dequantize

WINDOW_LAYERS_OF = 6  # The last of every six layers sees all.
WINDOW_ROPE_BASE = 10000.0


def rms(x, weight, eps):
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps) * weight


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x, base):
    """x: (T, heads, head_dim), of positions 0..T-1."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[0])[:, None] / base ** (np.arange(half) / half)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


class Gemma3Reference:
    def __init__(self, path):
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        if architecture != "gemma3":
            raise ValueError(f"{path} is a {architecture} model, not gemma3")

        def field(name):
            return reader.fields["gemma3." + name].contents()

        self.layers = field("block_count")
        self.qo_heads = field("attention.head_count")
        self.kv_heads = field("attention.head_count_kv")
        self.head_dim = field("attention.key_length")
        self.eps = field("attention.layer_norm_rms_epsilon")
        self.rope_base = field("rope.freq_base")
        self.window = field("attention.sliding_window")
        # float32 holds every quantized weight exactly and takes half the room; products are float64.
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32)
                  for t in reader.tensors}

    def product(self, x, name):
        return x @ self.w[name].astype(np.float64).T

    def attention(self, x, layer):
        prefix, count = f"blk.{layer}.", x.shape[0]
        windowed = layer % WINDOW_LAYERS_OF != WINDOW_LAYERS_OF - 1
        base = WINDOW_ROPE_BASE if windowed else self.rope_base
        q = self.product(x, prefix + "attn_q.weight").reshape(count, self.qo_heads, self.head_dim)
        k = self.product(x, prefix + "attn_k.weight").reshape(count, self.kv_heads, self.head_dim)
        v = self.product(x, prefix + "attn_v.weight").reshape(count, self.kv_heads, self.head_dim)
        q = rotate(rms(q, self.w[prefix + "attn_q_norm.weight"], self.eps), base)
        k = rotate(rms(k, self.w[prefix + "attn_k_norm.weight"], self.eps), base)
        age = np.arange(count)[:, None] - np.arange(count)[None, :]
        hidden = (age < 0) | (windowed & (age >= self.window))
        out = np.empty_like(q)
        for head in range(self.qo_heads):
            source = head * self.kv_heads // self.qo_heads
            score = q[:, head] @ k[:, source].T / math.sqrt(self.head_dim)
            score[hidden] = -np.inf
            weight = np.exp(score - score.max(axis=-1, keepdims=True))
            out[:, head] = weight / weight.sum(axis=-1, keepdims=True) @ v[:, source]
        return self.product(out.reshape(count, -1), prefix + "attn_output.weight")

    def hidden(self, tokens):
        """What the head sees: (T, d_model)."""
        table = self.w["token_embd.weight"]
        x = table[np.asarray(tokens)].astype(np.float64) * math.sqrt(table.shape[1])
        for layer in range(self.layers):
            prefix = f"blk.{layer}."

            def norm(value, name, at=prefix):
                return rms(value, self.w[at + name + ".weight"], self.eps)

            x = x + norm(self.attention(norm(x, "attn_norm"), layer), "post_attention_norm")
            h = norm(x, "ffn_norm")
            gated = gelu(self.product(h, prefix + "ffn_gate.weight"))
            gated *= self.product(h, prefix + "ffn_up.weight")
            x = x + norm(self.product(gated, prefix + "ffn_down.weight"), "post_ffw_norm")
        return rms(x, self.w["output_norm.weight"], self.eps)

    def write_logits(self, tokens, path):
        """In pieces: the table of all sizes is the largest thing here."""
        hidden = self.hidden(tokens)
        table = self.w["token_embd.weight"].astype(np.float64)
        with open(path, "wb") as out:
            for begin in range(0, len(tokens), 64):
                (hidden[begin:begin + 64] @ table.T).astype(np.float32).tofile(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens-file", required=True, help="ids, one a line")
    parser.add_argument("--logits", required=True, help="file to write")
    args = parser.parse_args()
    with open(args.tokens_file, encoding="ascii") as file:
        tokens = [int(line) for line in file]
    Gemma3Reference(args.model).write_logits(tokens, args.logits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
