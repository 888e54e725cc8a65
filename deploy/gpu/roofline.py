#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each GPU kernel of a forward pass, and those that pack and encode KV, must read, write and compute, and so
how long it takes at least.

    deploy/gpu/roofline.py             prints deploy/gpu/ROOFLINE.md
    deploy/gpu/roofline.py --check     exits with 1 when that file is not what is printed

gpu-acceptance.sh measures the same cases (bench/gpu_bench.cc takes them) and compares. Standard library only.
"""

import dataclasses
import pathlib
import re
import sys

DOCUMENT = pathlib.Path(__file__).resolve().parent / "ROOFLINE.md"


@dataclasses.dataclass(frozen=True)
class Gpu:
    name: str
    pattern: str  # Of what the driver calls it.
    memory_bytes_per_s: float
    int8_ops_per_s: float  # Dense, tensor cores.
    f32_ops_per_s: float  # Outside of tensor cores; a fused multiply-add is two.
    multiprocessors: int
    host_bytes_per_s: float  # PCIe x16, one way.
    sheet: str


GPUS = [
    Gpu("A100 80GB SXM", r"A100-SXM\d-80GB", 2.039e12, 624e12, 19.5e12, 108, 32e9,
        "NVIDIA A100 Tensor Core GPU Datasheet; SMs: NVIDIA A100 Tensor Core GPU Architecture"),
    Gpu("H100 SXM", r"H100 80GB HBM3|H100 SXM", 3.35e12, 1979e12, 67e12, 132, 64e9,
        "NVIDIA H100 Tensor Core GPU Datasheet; SMs: NVIDIA H100 Tensor Core GPU Architecture"),
    Gpu("H200 SXM", r"H200$", 4.8e12, 1979e12, 67e12, 132, 64e9,
        "NVIDIA H200 Tensor Core GPU Datasheet; SMs: those of H100 SXM"),
    Gpu("B200", r"B200", 8.0e12, 4500e12, 80e12, 148, 64e9,
        "NVIDIA Blackwell Architecture Technical Brief (HGX B200); SMs: as the driver reports them"),
]


def find_gpu(driver_name):
    """The Gpu of that name, or None: nothing is known of it."""
    return next((gpu for gpu in GPUS if re.search(gpu.pattern, driver_name)), None)


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    layers: int
    d_model: int
    d_ff: int
    qo_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    weights: str = "q4_k"
    head_weights: str = "q6_k"  # As files of the mixture Q4_K_M have it.


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    sequences: int
    rows: int  # Of each sequence.
    position: int  # Of its first row.
    kv_dtype: str = "f16"


MODELS = [Model("Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256),
          Model("Llama-3-70B", 80, 8192, 28672, 64, 8, 128, 128256)]
LOADS = [Load("decode, batch 1", 1, 1, 4095), Load("decode, batch 16", 16, 1, 4095),
         Load("decode, batch 64", 64, 1, 4095), Load("prefill, 2048 tokens", 1, 2048, 0),
         Load("decode, batch 64, KV in int8", 64, 1, 4095, "int8")]
PROMPT = next(load for load in LOADS if load.rows > 1)  # By which fast numerics are compared with the exact ones.
# For a stand-in, which is no GPU.
TINY_MODELS = [Model("Tiny", 1, 256, 512, 4, 2, 64, 512)]
TINY_LOADS = [Load("decode, batch 2", 2, 1, 40), Load("prefill, 9 tokens, KV in int8", 1, 9, 0, "int8")]
TINY_PROMPT = Load("prefill, 130 tokens", 1, 130, 0)


@dataclasses.dataclass(frozen=True)
class Move:
    """KV that is packed or unpacked, and checked, in one pass: of each block of 32 tokens and layer a unit."""
    name: str
    blocks: int
    all_layers: bool
    run_tokens: int = 0  # K or V of a head and so many tokens lie in one piece; 0: all of a unit does.
    check_only: bool = False


MOVES = [Move("a layer of 2,048 tokens", 64, False), Move("2,048 tokens", 64, True),
         Move("2,048 tokens, pages of 16", 64, True, 16), Move("2,048 tokens, checked only", 64, True, check_only=True)]
TINY_MOVES = [Move("2 blocks", 2, False), Move("2 blocks, pages of 16, checked only", 2, True, 16, True)]


# Codecs whose copies a GPU makes and reads, a block of 32 tokens at a time: bytes of a row of K and of V, of
# so many elements in F16, without what few values need.
CODECS = {"int8": (lambda dim: dim + 2, lambda dim: dim + 2),
          "kivi4": (lambda dim: dim / 2 + 4 * dim / 32, lambda dim: dim / 2 + 4 * dim / 32),
          "planes": (lambda dim: 1.75 * dim, lambda dim: 1.75 * dim)}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    calls: int  # Per step.
    work: dict  # As bench/gpu_cases.h reads it.


def cases(model, load):
    """One step of a forward pass, in its order, with the kernels that penstock starts."""
    m = model
    rows = load.sequences * load.rows
    qo, kv = m.qo_heads * m.head_dim, m.kv_heads * m.head_dim
    attention = {"qo_heads": m.qo_heads, "kv_heads": m.kv_heads, "head_dim": m.head_dim,
                 "sequences": load.sequences, "rows": load.rows, "position": load.position, "kv_dtype": load.kv_dtype}

    def linear(kernel, outputs, cols, weights=m.weights, of_rows=rows, **more):
        return {"kernel": kernel, "format": weights, "outputs": outputs, "cols": cols, "rows": of_rows, **more}

    steps = [
        ("embed", 1, linear("embed", [m.vocab], m.d_model)),
        ("norm", 2 * m.layers + 1, {"kernel": "rms_norm", "cols": m.d_model, "rows": rows}),
        ("q, k, v", m.layers, linear("linear", [qo, kv, kv], m.d_model)),
        ("rope and store", m.layers, {"kernel": "prepare", **attention}),
        ("attention", m.layers, {"kernel": "attention", **attention}),
        ("attention out", m.layers, linear("linear", [m.d_model], qo, add=True)),
        ("gate and up", m.layers, linear("gated", [m.d_ff, m.d_ff], m.d_model)),
        ("down", m.layers, linear("linear", [m.d_model], m.d_ff, add=True)),
        ("last rows", 1, {"kernel": "gather", "cols": m.d_model, "rows": load.sequences}),
        ("head", 1, linear("linear", [m.vocab], m.d_model, m.head_weights, load.sequences)),
        ("draw", 1, {"kernel": "draw", "cols": m.vocab, "rows": load.sequences}),
    ]
    return [Case(name, calls, {"name": f"{m.name}, {load.name}: {name}", **work}) for name, calls, work in steps]


def move_cases(model, moves):
    result = []
    for move in moves:
        of_tokens = 2 * model.head_dim  # K or V of a head, in F16.
        unit = 32 * 2 * model.kv_heads * of_tokens
        result.append(Case(move.name, 1, {
            "name": f"{model.name}: {move.name}", "kernel": "copy_units",
            "units": move.blocks * (model.layers if move.all_layers else 1), "bytes": unit,
            "run_bytes": move.run_tokens * of_tokens or unit, "check_only": move.check_only}))
    return result


def code_cases(model):
    return [Case(f"{kernel[:6]}, {codec}", 1, {
        "name": f"{model.name}: {kernel} {codec}", "kernel": kernel, "codec": codec, "layers": model.layers,
        "kv_heads": model.kv_heads, "head_dim": model.head_dim})
        for codec in CODECS for kernel in ("encode_kv", "decode_kv")]


def unpack_cases(model):
    """Matrices of a layer as fast numerics unpack them for products of many rows (kernels/fast_products.h)."""
    m = model
    shapes = [("q", m.qo_heads * m.head_dim, m.d_model), ("gate", m.d_ff, m.d_model), ("down", m.d_model, m.d_ff)]
    return [Case(name, 1, {"name": f"{m.name}: unpack {name}", "kernel": "unpack", "format": m.weights,
                           "outputs": [rows], "cols": cols, "rows": 1}) for name, rows, cols in shapes]


# ---- Costs of one call.

# Bytes of 16 rows x 32 columns of packed weights, scales among them (kernels/packed_layout.h): of k formats
# an eighth of a super-block.
PACKED_BYTES = {"q4_k": (32 + 32) / 8 + 32 + 256, "q6_k": 32 / 8 + 32 + 384}
# Multiplications and multiply-adds that a block of 32 columns takes per output beside the exact sums
# (kernels/linear.h).
BLOCK_STEPS = {"q4_k": 3, "q6_k": 3}
# Bytes of an element of activations in their int8 form: itself, and its part of scale and sum of 32.
INT8 = 1 + 8 / 32
# Bytes of an element of K or V, and of the scale of a row of a head.
KV_BYTES = {"f16": (2, 0), "int8": (1, 2)}


@dataclasses.dataclass(frozen=True)
class Cost:
    bytes: float  # Each that is read or written, once.
    int8_ops: float
    f32_ops: float  # Two per instruction, as peaks count them.

    def limits(self, gpu):
        """Seconds by what needs them: m(emory), i(nt8 tensor cores), f(32)."""
        return {"m": self.bytes / gpu.memory_bytes_per_s, "i": self.int8_ops / gpu.int8_ops_per_s,
                "f": self.f32_ops / gpu.f32_ops_per_s}

    def seconds(self, gpu):
        return max(self.limits(gpu).values())

    def limit(self, gpu):
        limits = self.limits(gpu)
        return max(limits, key=limits.get)


def packed_bytes(weights, rows, cols):
    return (rows + 15) // 16 * cols // 32 * PACKED_BYTES[weights]


def weights_bytes(work):
    """Of the matrices that one call reads, as gpu_bench counts them; 0 where there are none."""
    if work["kernel"] == "embed":
        return work["rows"] * int(packed_bytes(work["format"], work["outputs"][0], work["cols"]) // work["outputs"][0])
    return int(sum(packed_bytes(work["format"], n, work["cols"]) for n in work.get("outputs", [])))


def product_cost(work):
    rows, cols, outputs = work["rows"], work["cols"], sum(work["outputs"])
    if work["kernel"] == "gated":
        out = outputs / 2 * INT8
    else:
        out = outputs * (8 if work.get("add") else 4)
    return Cost(weights_bytes(work) + rows * (cols * INT8 + out), 2.0 * rows * cols * outputs,
                2.0 * rows * outputs * cols / 32 * BLOCK_STEPS[work["format"]])


def attention_cost(work):
    tokens, position, dim = work["rows"], work["position"], work["head_dim"]
    rows = work["sequences"] * tokens
    qo, kv = work["qo_heads"] * dim, work["kv_heads"] * dim
    element, scale = KV_BYTES[work["kv_dtype"]]
    kept = 2 * work["kv_heads"] * (dim * element + scale)  # Of a token: K and V.
    if work["kernel"] == "prepare":  # q and k in place, v, pages, and cos and sin.
        return Cost(rows * (8 * qo + (8 + 4) * kv + kept + 4 * dim), 0, rows * 4 * (qo + kv))
    pairs = work["sequences"] * (tokens * position + tokens * (tokens + 1) / 2)  # Of a row and a token it sees.
    pages = work["sequences"] * (position + tokens) * kept
    return Cost(pages + rows * qo * (4 + INT8), 0, pairs * 2 * 2 * qo)


def cost(work):
    kernel = work["kernel"]
    if kernel in ("linear", "gated"):
        return product_cost(work)
    if kernel in ("prepare", "attention"):
        return attention_cost(work)
    if kernel == "copy_units":  # Beside the bytes, what describes them: 24 per run, 8 per unit, and 4 of checksum.
        runs = work["bytes"] // work["run_bytes"]
        return Cost(work["units"] * (work["bytes"] * (1 if work["check_only"] else 2) + 24 * runs + 12), 0, 0)
    if kernel in ("encode_kv", "decode_kv"):
        rows = 32 * work["layers"] * work["kv_heads"]
        return Cost(rows * (4 * work["head_dim"] + sum(part(work["head_dim"]) for part in CODECS[work["codec"]])), 0, 0)
    if kernel == "unpack":  # To 16 bits; a product and a sum of each.
        weights = work["outputs"][0] * work["cols"]
        return Cost(weights_bytes(work) + 2 * weights, 0, 4 * weights)
    elements = work["rows"] * work["cols"]
    if kernel == "embed":
        return Cost(weights_bytes(work) + 4 * elements, 0, 4 * elements)
    if kernel == "draw":
        return Cost(4 * elements, 0, 0)
    if kernel == "gather":
        return Cost(8 * elements, 0, 0)
    return Cost((4 + INT8) * elements + 4 * work["cols"], 0, 8 * elements)  # rms_norm


# ---- The document.

def microseconds(seconds):
    us = seconds * 1e6
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}" if us >= 1 else f"{us:.2f}"


def table(model, load):
    lines = [f"### {model.name}, {load.name}", "",
             "| kernel | calls | MB | int8 GOP | F32 GFLOP | " + " | ".join(f"{g.name}, µs" for g in GPUS) + " |",
             "|---|--:|--:|--:|--:|" + "--:|" * len(GPUS)]
    totals = [0.0] * len(GPUS)
    for case in cases(model, load):
        c = cost(case.work)
        times = []
        for i, gpu in enumerate(GPUS):
            totals[i] += case.calls * c.seconds(gpu)
            times.append(f"{microseconds(c.seconds(gpu))} {c.limit(gpu)}")
        lines.append(f"| {case.name} | {case.calls} | {c.bytes / 1e6:.2f} | {c.int8_ops / 1e9:.2f} | "
                     f"{c.f32_ops / 1e9:.2f} | " + " | ".join(times) + " |")
    tokens = load.sequences * load.rows
    lines.append("| **a step** | | | | | " + " | ".join(f"{1e3 * t:.2f} ms" for t in totals) + " |")
    lines.append("| **tokens/s at most** | | | | | " + " | ".join(f"{tokens / t:,.0f}" for t in totals) + " |")
    return lines + [""]


def moves_table(model):
    lines = [f"### {model.name}, KV that travels", "",
             "| what | units | MB | " + " | ".join(f"{g.name}, µs" for g in GPUS) + " |",
             "|---|--:|--:|" + "--:|" * len(GPUS)]
    for case in move_cases(model, MOVES):
        c = cost(case.work)
        times = [f"{microseconds(c.seconds(gpu))} {c.limit(gpu)}" for gpu in GPUS]
        lines.append(f"| {case.name} | {case.work['units']} | {c.bytes / 1e6:.2f} | " + " | ".join(times) + " |")
    return lines + [""]


def bytes_table(title, head, cases):
    """Of kernels that nothing but memory limits, each called once."""
    lines = [f"### {title}", "",
             f"| {head} | MB | " + " | ".join(f"{g.name}, µs" for g in GPUS) + " |", "|---|--:|" + "--:|" * len(GPUS)]
    for case in cases:
        c = cost(case.work)
        times = [f"{microseconds(c.seconds(gpu))} {c.limit(gpu)}" for gpu in GPUS]
        lines.append(f"| {case.name} | {c.bytes / 1e6:.2f} | " + " | ".join(times) + " |")
    return lines + [""]


def document():
    lines = [
        "# Roofline of the GPU kernels", "",
        "Made by `deploy/gpu/roofline.py`; `deploy/gpu-acceptance.sh` measures the same calls and compares.", "",
        "For each kernel of a forward pass: the bytes that one call must read or write once, the operations that",
        "its contract asks for, and the time that the slower of them takes at a GPU's peak. No kernel can be faster;",
        "overlap is taken to be perfect, and launches and tails of a grid to cost nothing, so short ones take longer.", "",
        f"- Weights are {MODELS[0].weights.upper()}, the head's {MODELS[0].head_weights.upper()}, packed as",
        "  `kernels/packed_layout.h` has it; KV is F16 or, where it says so, int8 with a scale per token and head;",
        "  decode attends to 4,096 tokens per sequence.",
        "- Activations are int8 with a scale and a sum per 32. Tensor cores form the sums of 32 columns exactly;",
        "  `kernels/linear.h` then fixes the order in which floats take them in: three F32 instructions per 32",
        "  columns and output, which is what long prompts wait for. Turning the sums into floats is not counted.",
        "- Attention is F32 throughout, in the order of `kernels/attention.h`; exponentials and turning K and V into",
        "  floats are not counted. In numerics fast cuDNN attends to prompts on tensor cores (`kernels/fast_attention.h`):",
        "  the same pages are read, and 4 bytes more are moved for each value of q and of the result, which are rounded",
        "  to the pages' type and widened; cuDNN's time is not listed.",
        "- Tokens are drawn at temperature 1, without filters; F64 operations, with which weights are made, are not counted.",
        "- KV that travels is copied to or from a packed buffer with its CRC32C (`kernels/units_cuda.h`), a unit per block",
        "  of 32 tokens and layer; every byte is read once and, unless it is only checked, written once.",
        "- Blocks of 32 tokens are encoded and decoded by `kernels/kv_encoding_cuda.h` and, without loss (`planes`),",
        "  `kernels/kv_split_cuda.h`: a block is read, or written, once, and what it becomes the other way. Over the host's",
        "  link the shorter of both takes longer than either, on every GPU here.",
        "- Fast numerics (`kernels/fast_products.h`) unpack a matrix to 16 bits before cuBLASLt multiplies it with many",
        "  rows; the product's own time is the library's affair.",
        "- After each time: what it is the time of: m(emory), i(nt8 tensor cores), f (F32).", "",
        "| GPU | memory | int8, dense | F32 | SMs | PCIe, one way | source |", "|---|--:|--:|--:|--:|--:|---|"]
    lines += [f"| {g.name} | {g.memory_bytes_per_s / 1e12:.2f} TB/s | {g.int8_ops_per_s / 1e12:,.0f} TOP/s | "
              f"{g.f32_ops_per_s / 1e12:.1f} TFLOP/s | {g.multiprocessors} | {g.host_bytes_per_s / 1e9:.0f} GB/s | "
              f"{g.sheet} |" for g in GPUS]
    lines.append("")
    for model in MODELS:
        for load in LOADS:
            lines += table(model, load)
        lines += moves_table(model)
        lines += bytes_table(f"{model.name}, a block of 32 tokens as a store keeps it", "what", code_cases(model))
        lines += bytes_table(f"{model.name}, weights that fast numerics unpack", "matrix", unpack_cases(model))
    return "\n".join(lines[:-1]) + "\n"


def main(argv):
    if argv == ["--check"]:
        if DOCUMENT.read_text(encoding="utf-8") == document():
            return 0
        print("deploy/gpu/ROOFLINE.md is not what it is made from: deploy/gpu/roofline.py > deploy/gpu/ROOFLINE.md")
        return 1
    if argv:
        print(__doc__, file=sys.stderr)
        return 2
    print(document(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
