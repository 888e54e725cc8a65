#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden encodings from the `tokenizers` and `sentencepiece` packages, to judge model/tokenizer.h.

Development only: pip install tokenizers sentencepiece gguf protobuf. What the tests read is committed
in tests/golden/tokenizer/ and written again by

  make_tokenizer_goldens.py --smollm SmolLM2-135M-Instruct.Q4_1.gguf --gemma gemma-3-270m-q4_k_m.gguf

With --large DIR [--count N] nothing is committed: every scheme gets a vocabulary and N texts there,
for `tokenizer_compare DIR/NAME.vocabulary.json DIR/NAME.goldens.jsonl`. --extra NAME=PRE=FILE adds the
vocabulary of another GGUF file with the pre-tokenizer PRE. The random numbers are seeded.
"""

import argparse
import json
import pathlib
import random
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).parent / "golden" / "tokenizer"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# name -> (Hugging Face pre-tokenizer, our splits, flags of ours)
PRE = {
    "smollm": (lambda: pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), [None, GPT2], {}),
    "gpt2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), [GPT2], {}),
    "llama-bpe": (lambda: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        [LLAMA3], {"ignore_merges": True}),
    "qwen2": (lambda: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        [QWEN2], {"normalize_nfc": True}),
}
# tokenizer.ggml.token_type -> model/vocabulary.h TokenKind
KINDS = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(6)


class Vocabulary:
    def __init__(self, pieces, kinds, merges=None, scores=None, **flags):
        self.pieces, self.kinds, self.merges, self.scores = pieces, kinds, merges, scores
        self.flags = flags

    @staticmethod
    def from_gguf(path):
        import gguf
        fields = gguf.GGUFReader(path).fields
        get = lambda name: fields["tokenizer.ggml." + name].contents() if "tokenizer.ggml." + name in fields else None
        return Vocabulary(get("tokens"), [KINDS[k] for k in get("token_type")], get("merges"), get("scores"))

    def json(self, scheme, splits, flags):
        data = {"scheme": scheme, "pieces": self.pieces, "kinds": self.kinds}
        if self.merges:
            data["merges"] = self.merges
        elif self.scores:
            data["scores"] = self.scores
        return data | {"splits": splits} | self.flags | flags


def byte_level(vocabulary, pre):
    """The `tokenizers` object for a byte-level BPE vocabulary and a pre-tokenizer's name."""
    make, splits, flags = PRE[pre]
    ids = {p: i for i, p in enumerate(vocabulary.pieces)}
    merges = [tuple(m.split(" ")) for m in vocabulary.merges]
    tok = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=flags.get("ignore_merges", False)))
    tok.pre_tokenizer = make()
    if flags.get("normalize_nfc"):
        tok.normalizer = normalizers.NFC()
    added = [AddedToken(p, normalized=False, special=k == CONTROL)
             for p, k in zip(vocabulary.pieces, vocabulary.kinds) if k in (CONTROL, USER_DEFINED)]
    tok.add_tokens(added)
    return (lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)],
            vocabulary.json("bpe", splits, flags))


def sentencepiece(vocabulary, dummy_prefix=False):
    """The `sentencepiece` object for a GGUF vocabulary with scores."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    proto = pb.ModelProto()
    kinds = {NORMAL: 1, UNKNOWN: 2, CONTROL: 3, USER_DEFINED: 4, UNUSED: 5, BYTE: 6}
    for piece, score, kind in zip(vocabulary.pieces, vocabulary.scores, vocabulary.kinds):
        # GGUF writes the spaces of user-defined tokens as spaces.
        piece = piece.replace(" ", "\u2581")
        proto.pieces.add(piece=piece, score=score, type=kinds[kind])
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    processor = spm.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return (lambda texts: processor.encode(texts, out_type=int),
            vocabulary.json("sentencepiece", [], {"add_space_prefix": dummy_prefix}))


def without_control(vocabulary, texts):
    """sentencepiece's own encode never gives control tokens, and stops at a NUL."""
    control = [p for p, k in zip(vocabulary.pieces, vocabulary.kinds) if k == CONTROL]
    return [t for t in texts if not any(c in t for c in control) and "\x00" not in t]


def gemma_tokenizers(vocabulary):
    """As Hugging Face's gemma: merges made from the scores, spaces replaced. Texts where equal scores
    meet (two ways to the same piece) may differ from sentencepiece."""
    ids = {p: i for i, p in enumerate(vocabulary.pieces)}
    merges = []
    for piece, score, kind in zip(vocabulary.pieces, vocabulary.scores, vocabulary.kinds):
        if kind not in (NORMAL, USER_DEFINED):
            continue
        local = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        merges += [(-score, ids[l], ids[r], l, r) for l, r in local]
    merges = [m[3:] for m in sorted(merges)]
    tok = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True, fuse_unk=True,
                                          unk_token="<unk>"))
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.add_tokens([AddedToken(p, normalized=False, special=k == CONTROL)
                    for p, k in zip(vocabulary.pieces, vocabulary.kinds) if k in (CONTROL, USER_DEFINED)])
    flags = vocabulary.json("sentencepiece", [], {})
    return (lambda texts: [e.ids for e in tok.encode_batch(texts, add_special_tokens=False)], flags)


WORDS = ("the of and to in is that it was for on are with his they at be this from I have or by one had not but what "
         "all were when we there can an your which their said if do will each about how up out them then she many some "
         "so these would other into has more her two like him see time could no make than first been its who now people "
         "over did down only way find use may water long little very after words called just where most know").split()
CODE = ["def f(x):\n    return x**2 + 3.14159\n", "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n\t}\n",
        "#include <vector>\r\n\r\nint main() { return 0; }\r\n", '{"key": [1, 2.5e-10, null, true]}',
        "SELECT * FROM t WHERE id >= 10 AND name LIKE '%x%';", "<div class=\"a\">&nbsp;</div>", "x = y if z else w  # comment",
        "$ ls -la | grep '^d' > /dev/null 2>&1", "0x1F 0b1010 1_000_000 1e10 3.0f", "lambda: (yield)", "a->b::c<d>&&e||!f"]
SPECIAL = ["https://example.com/a?b=c&d=%20#frag", "user.name+tag@example.co.uk", "I'm you're WE'LL they'd it's CAN'T "
           "d\u2019accord 'S 'Re 'ſ", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇩🇪🇫🇷", "👍🏽", "e\u0301\u0302 n\u0303 Å Å",
           "…—“”‘’«»", "ＦＵＬＬ　ｗｉｄｔｈ", "ﬁ ﬂ ﬀ", "½ ² ³ Ⅷ ① ٣ ३ ೩ 〇 一二三", "\u200b\ufeff\u00ad\u2060", "İıſßẞ", "각 가각", "ด้วย",
           "क्षत्रिय", "ﷺ", "𝕬𝖇𝖈", "\u180e \u0085 \u2028\u2029\u00a0\u3000\u1680", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
           "<bos>", "<end_of_turn>", "<|im_start", "|im_end|>", "</s>", "<0x0A>", "\u2581\u2581a", "<unused5>", "\x00\x01\x7f"]
SCRIPTS = [(0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F), (0x590, 0x5FF),
           (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
           (0x1200, 0x137F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x2BFF), (0x3040, 0x30FF),
           (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFDFF), (0xFE00, 0xFFEF), (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF)]


def random_text(rng, top):
    def character():
        kind = rng.random()
        if kind < 0.85:
            low, high = rng.choice(SCRIPTS)
            return chr(rng.randint(low, high))
        while True:
            c = rng.randint(0, top)
            if not 0xD800 <= c < 0xE000:
                return chr(c)

    def part():
        kind = rng.randrange(12)
        if kind < 3:
            words = [rng.choice(WORDS) for _ in range(rng.randint(1, 8))]
            words = [rng.choice((str, str.title, str.upper))(w) if rng.random() < 0.2 else w for w in words]
            return " ".join(words) + rng.choice(["", ".", ",", "!", "?\n", ";", ":", "'s", "'LL", " "])
        if kind == 3:
            return "".join(rng.choice(" \t\n\r\u00a0\u3000\u2009") if rng.random() < 0.2 else rng.choice(" \n ")
                           for _ in range(rng.randint(1, 12)))
        if kind == 4:
            return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 12)))
        if kind == 5:
            return rng.choice(CODE)
        if kind == 6:
            return rng.choice(SPECIAL)
        if kind == 7:
            low, high = rng.choice(SCRIPTS)
            return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))
        if kind == 8:
            return "".join(character() for _ in range(rng.randint(1, 8)))
        if kind == 9:
            return rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ") * rng.randint(1, 6)
        if kind == 10:
            return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(1, 20)))
        return rng.choice("aAb=- \n.é你") * rng.choice([1, 2, 3, 5, 17, 40, 60, 150, 300])

    return "".join(part() for _ in range(rng.randint(1, 6)))


# A character of a Unicode version that one side does not know yet has another category there.
# Python's own tables stand for what both know; newer ones are left out of the comparison.
def known_everywhere(text):
    return all(ord(c) < 0x590 or unicodedata.category(c) != "Cn" for c in text)


def corpus(seed, count, top=0x10FFFF):
    rng = random.Random(seed)
    fixed = ["", " ", "  ", "\n", "\n\n", "\r\n", "\t", "a", " a", "  a", "a ", "a  ", "'s", "'", "Hello, world!"]
    fixed += CODE + SPECIAL + ["a" * 200, " " * 300, "\n" * 300, "ab" * 1000]
    return (fixed + [random_text(rng, top) for _ in range(count)])[:count]


def write(path, encode, data, texts):
    with open(path.parent / (path.name + ".vocabulary.json"), "w") as f:
        json.dump(data, f, separators=(",", ":"))
    write_goldens(path.parent / (path.name + ".goldens.jsonl"), encode, texts)


def write_goldens(path, encode, texts):
    with open(path, "w") as f:
        for text, ids in zip(texts, encode(texts)):
            f.write(json.dumps([text, ids], separators=(",", ":")) + "\n")


def tiny():
    """A byte-level BPE of 600 tokens, trained on the corpus itself."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = PRE["llama-bpe"][0]()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus(1, 2000), trainer)
    model = json.loads(tok.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary(pieces, [CONTROL, CONTROL] + [NORMAL] * (len(pieces) - 2), merges)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm", required=True)
    parser.add_argument("--gemma", required=True)
    parser.add_argument("--large", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--extra", action="append", default=[], metavar="NAME=PRE=FILE")
    args = parser.parse_args()
    smollm = Vocabulary.from_gguf(args.smollm)
    gemma = Vocabulary.from_gguf(args.gemma)
    if args.large:
        args.large.mkdir(parents=True, exist_ok=True)
        texts = [t for t in corpus(2, args.count) if known_everywhere(t)]
        newer = [t for t in corpus(3, args.count // 10) if not known_everywhere(t)]
        for pre in PRE:
            write(args.large / pre, *byte_level(smollm, pre), texts)
            write(args.large / (pre + "-unassigned"), *byte_level(smollm, pre), newer)
        plain = lambda v: without_control(v, texts + newer)
        write(args.large / "gemma", *sentencepiece(gemma), plain(gemma))
        write(args.large / "gemma-prefix", *sentencepiece(gemma, True), plain(gemma))
        write(args.large / "gemma-tokenizers", *gemma_tokenizers(gemma), texts)
        for extra in args.extra:
            name, pre, path = extra.split("=")
            vocabulary = Vocabulary.from_gguf(path)
            encode, data = sentencepiece(vocabulary, True) if pre == "sentencepiece" else byte_level(vocabulary, pre)
            write(args.large / name, encode, data, plain(vocabulary) if pre == "sentencepiece" else texts + newer)
        return
    OUT.mkdir(parents=True, exist_ok=True)
    small = [t for t in corpus(4, 400) if known_everywhere(t) and len(t) < 400]
    write_goldens(OUT / "smollm2.goldens.jsonl", byte_level(smollm, "smollm")[0], small[:60] + small[-120:])
    write_goldens(OUT / "gemma3.goldens.jsonl", sentencepiece(gemma)[0],
                  without_control(gemma, small[:60] + small[-120:]))
    vocabulary = tiny()
    with open(OUT / "tiny.vocabulary.json", "w") as f:
        json.dump(vocabulary.json("bpe", [LLAMA3], {}), f, separators=(",", ":"))
    for pre in PRE:
        write_goldens(OUT / f"tiny-{pre}.goldens.jsonl", byte_level(vocabulary, pre)[0], small[:60] + small[-60:])


if __name__ == "__main__":
    main()
