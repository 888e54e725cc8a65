#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/weight_format.bin: blocks of every weight format and what they mean, as the
`gguf` Python package (ggml's own reference in numpy) decodes them.

Layout, little-endian: u32 formats, then per format u32 name length, name, u32 blocks, u32 bytes per
block, u32 weights per block, the blocks, the weights as float32.

    pip install numpy gguf && tests/make_weight_goldens.py
"""
import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

FORMATS = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
# Byte offsets of the binary16 scales inside a block.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# Zeros, smallest and largest subnormal, smallest normal, largest, one, infinity, a quiet NaN.
EXTREMES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0x7C00, 0x7E01]


def blocks_of(name, rng):
    block, size = GGML_QUANT_SIZES[T[name]]
    if block == 1:  # Plain floats: random bits and every extreme.
        raw = rng.integers(0, 256, (512, size), dtype=np.uint8)
        if name == "F16":
            raw[: len(EXTREMES)] = np.array(EXTREMES, "<u2").view(np.uint8).reshape(-1, 2)
        return raw
    count = 24 if block == 32 else 14
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    raw[0] = 0xFF
    raw[1] = 0x00
    raw[2] = np.arange(size, dtype=np.int64).astype(np.uint8)  # Every byte value in turn.
    for row in range(count):
        for k, at in enumerate(SCALES[name]):
            if row < len(EXTREMES):
                bits = EXTREMES[(row + 3 * k) % len(EXTREMES)]
            else:
                bits = int(np.float16(rng.normal() * 0.05).view(np.uint16))
            raw[row, at : at + 2] = np.array([bits], "<u2").view(np.uint8)
    return raw


def main():
    rng = np.random.default_rng(3)
    out = [struct.pack("<I", len(FORMATS))]
    for name in FORMATS:
        block, size = GGML_QUANT_SIZES[T[name]]
        raw = blocks_of(name, rng)
        with np.errstate(all="ignore"):
            weights = dequantize(raw.reshape(-1), T[name]).astype("<f4").reshape(-1)
        assert weights.size == raw.shape[0] * block
        out += [struct.pack("<I", len(name)), name.lower().encode(),
                struct.pack("<III", raw.shape[0], size, block), raw.tobytes(), weights.tobytes()]
    path = pathlib.Path(__file__).parent / "golden" / "weight_format.bin"
    path.write_bytes(b"".join(out))
    print(path, path.stat().st_size)


main()
