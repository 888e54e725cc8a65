#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tiny/<name>/: small random-weight Hugging Face models of every architecture
and `logits.json`, what transformers computes from them in float32 with eager attention:

    {"tokens": [ids], "first_position": p, "logits": [[vocab] for positions p .. len(tokens) - 1]}

Prompts are longer than every window. Weights are drawn wide, so that a wrong norm, window, rotation
or scale moves the logits far beyond rounding. Some configs are written as transformers 4 spells
them, some as 5 does.

    pip install torch transformers tokenizers && tests/make_tiny_models.py
"""
import json
import pathlib
import shutil

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import AddedToken, trainers

OUT = pathlib.Path(__file__).parent / "golden" / "tiny"
VOCAB = 320
TOKENS = 40
LAST = 4  # Positions whose logits are kept.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CORPUS = ["The mill stands where the river bends, and the river bends where it pleases.",
          "A sluice holds 128 gallons; the weir 4,096. It's said they'll never run dry.",
          "def pour(water):\n    return water  # again and again\n"] * 4
COMMON = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_attention_heads=4,
              max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.15)


def byte_level(name, bos, specials):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    split = LLAMA3 if name == "llama3" else QWEN2
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if name.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=310, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    if bos:
        at = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 $B:1",
                                          special_tokens=[(bos, at)])])
    return tokenizer


def sentence_piece(prefix, specials, pieces):
    """Byte fallback, spaces as U+2581: as transformers converts llama 2 (prefix) and gemma."""
    vocab = {s: i for i, s in enumerate(specials)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = []
    for letter in "\u2581theanirv":
        vocab[letter] = len(vocab)
    for piece in pieces:
        left = next(piece[:k] for k in range(len(piece) - 1, 0, -1)
                    if piece[:k] in vocab and piece[k:] in vocab)
        merges.append((left, piece[len(left):]))
        vocab[piece] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True,
                                     unk_token="<unk>"))
    replace = normalizers.Replace(" ", "\u2581")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    bos = "<s>" if prefix else "<bos>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, vocab[bos])])
    return tokenizer


PIECES = ["he", "\u2581t", "\u2581the", "in", "er", "an", "re", "ri", "ve", "rive", "river", "at"]


def randomize(model, norm_mean, generator):
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            mean = norm_mean if "norm" in name else 0.0
            weight.data = mean + 0.25 * torch.randn(weight.shape, generator=generator)
        else:
            weight.data = 0.15 * torch.randn(weight.shape, generator=generator)


def spell_as_v4(path):
    """Rewrites rope_parameters to what transformers 4 wrote."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.41.0"
    path.write_text(json.dumps(config, indent=2) + "\n")


def write(name, model_class, config, dtype, tokenizer, bos, eos, v4=False, norm_mean=1.0, shards=None):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    config.bos_token_id, config.eos_token_id = (
        tokenizer.token_to_id(bos) if bos else None, tokenizer.token_to_id(eos))
    model = model_class(config).eval()
    randomize(model, norm_mean, generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards or "10MB")
    if v4:
        spell_as_v4(folder / "config.json")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": bos, "eos_token": {"__type": "AddedToken", "content": eos, "special": True},
         "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"},
        indent=2) + "\n")
    # Read back, so that the files alone decide.
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.randint(0, 300, (TOKENS,), generator=generator)
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, -LAST:]
    assert torch.isfinite(logits).all() and logits.std() > 0.3, logits.std()
    with (folder / "logits.json").open("w") as f:
        rows = ",\n".join("[" + ",".join(f"{x:.6g}" for x in row) + "]" for row in logits.tolist())
        f.write(f'{{"tokens": {tokens.tolist()},\n"first_position": {TOKENS - LAST},\n'
                f'"logits": [{rows}]}}\n')
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{name}: {size} bytes, logits std {logits.std():.2f}, files {len(list(folder.iterdir()))}")


def main():
    tf.logging.set_verbosity_error()
    llama3 = byte_level("llama3", "<|begin_of_text|>",
                        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    qwen = byte_level("qwen", None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    llama2 = sentence_piece(True, ["<unk>", "<s>", "</s>"], PIECES)
    gemma = sentence_piece(False, ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"], PIECES)
    write("llama3", tf.LlamaForCausalLM, tf.LlamaConfig(
        **COMMON, num_hidden_layers=3, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=64)),
          torch.bfloat16, llama3, "<|begin_of_text|>", "<|eot_id|>")
    write("llama2", tf.LlamaForCausalLM, tf.LlamaConfig(
        **COMMON, num_hidden_layers=2, num_key_value_heads=4,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)),
          torch.float32, llama2, "<s>", "</s>", v4=True, shards="160KB")
    write("mistral", tf.MistralForCausalLM, tf.MistralConfig(
        **COMMON, num_hidden_layers=3, num_key_value_heads=2, head_dim=32, sliding_window=8),
          torch.bfloat16, llama2, "<s>", "</s>", v4=True)
    write("qwen2", tf.Qwen2ForCausalLM, tf.Qwen2Config(
        **COMMON, num_hidden_layers=2, num_key_value_heads=2),
          torch.float16, qwen, None, "<|im_end|>")
    write("qwen3", tf.Qwen3ForCausalLM, tf.Qwen3Config(
        **COMMON, num_hidden_layers=2, num_key_value_heads=1, head_dim=24,
        tie_word_embeddings=True), torch.bfloat16, qwen, None, "<|im_end|>")
    write("gemma3", tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(
        **COMMON, num_hidden_layers=7, num_key_value_heads=1, head_dim=32, sliding_window=8,
        query_pre_attn_scalar=24, rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100000.0),
            sliding_attention=dict(rope_type="default", rope_theta=1000.0))),
          torch.bfloat16, gemma, "<bos>", "<eos>", norm_mean=0.0)


main()
