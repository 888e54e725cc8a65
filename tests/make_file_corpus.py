#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the first inputs of the fuzz targets for model files, tests/corpus/<target>_fuzz/: small whole
files, cut ones, and ones with a wrong field. Needs tests/golden/tiny and the `gguf` package.

    pip install numpy gguf && tests/make_file_corpus.py
"""
import json
import pathlib
import struct

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
CORPUS = HERE / "corpus"


def put(target, name, data):
    folder = CORPUS / f"{target}_fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def tiny_gguf(family, sentence_piece):
    path = CORPUS / "tmp.gguf"
    w = gguf.GGUFWriter(path, family)
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(32)
    w.add_feed_forward_length(32)
    w.add_head_count(4)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-5)
    if family == "gemma3":
        w.add_sliding_window(8)
    if sentence_piece:
        w.add_tokenizer_model("llama")
        w.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab"])
        w.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
        w.add_token_types([2, 3, 3, 1, 1, 1])
    else:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("smollm")
        w.add_token_list(["<|endoftext|>", "<|im_end|>", "a", "b", "ab", "c"])
        w.add_token_types([3, 3, 1, 1, 1, 1])
        w.add_token_merges(["a b"])
        w.add_eos_token_id(1)

    def tensor(name, *shape, kind=gguf.GGMLQuantizationType.Q8_0):
        x = np.ones(shape, np.float32)
        if len(shape) == 1:
            w.add_tensor(name, x)
        else:
            w.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)

    tensor("token_embd.weight", 6, 32)
    tensor("output_norm.weight", 32)
    for name, *shape in [("attn_norm", 32), ("attn_q", 32, 32), ("attn_k", 8, 32), ("attn_v", 8, 32),
                         ("attn_output", 32, 32), ("ffn_norm", 32), ("ffn_gate", 32, 32),
                         ("ffn_up", 32, 32), ("ffn_down", 32, 32)]:
        tensor(f"blk.0.{name}.weight", *shape, kind=gguf.GGMLQuantizationType.Q4_1)
    if family == "gemma3":
        for name, n in [("attn_q_norm", 8), ("attn_k_norm", 8), ("post_attention_norm", 32),
                        ("post_ffw_norm", 32)]:
            tensor(f"blk.0.{name}.weight", n)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    data = path.read_bytes()
    path.unlink()
    return data


def safetensors(header, data):
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text)) + text.encode() + bytes(data)


def main():
    CORPUS.mkdir(exist_ok=True)
    whole = tiny_gguf("llama", False)
    put("gguf", "llama", whole)
    put("gguf", "gemma3", tiny_gguf("gemma3", True))
    put("gguf", "cut_metadata", whole[:300])
    put("gguf", "cut_tensors", whole[:-40])
    put("gguf", "huge_counts", whole[:8] + b"\xff" * 16 + whole[24:200])
    one = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    put("safetensors", "one", safetensors({"__metadata__": {"format": "pt"}, "t": one}, 16))
    put("safetensors", "two", safetensors(
        {"a": one, "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}, 22))
    put("safetensors", "overlap", safetensors({"a": one, "b": one}, 16))
    put("safetensors", "overflow", safetensors(
        {"t": {"dtype": "F16", "shape": [2**33, 2**33], "data_offsets": [0, 2**63]}}, 4))
    put("safetensors", "twice", safetensors(f'{{"t":{json.dumps(one)},"t":{json.dumps(one)}}}', 16))
    put("safetensors", "index", json.dumps({"weight_map": {"a": "x.safetensors", "b": "../y"}}))
    for name in ("llama3", "gemma3", "mistral", "qwen3"):
        folder = HERE / "golden" / "tiny" / name
        put("hf_config", name, (folder / "config.json").read_bytes())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        keep = 40  # Few pieces keep mutations meaningful.
        model = tokenizer["model"]
        model["vocab"] = {p: i for p, i in model["vocab"].items() if i < keep}
        model["merges"] = model["merges"][:4]
        for token in tokenizer["added_tokens"]:
            token["id"] = token["id"] % 300 + keep if token["id"] >= keep else token["id"]
        put("tokenizer_json", name, json.dumps(tokenizer, ensure_ascii=False))


main()
