#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Test vectors of base/key.h from an implementation of its own (hashlib).

    tests/key_vectors.py                     prints the table
    tests/key_vectors.py --check FILE        exits with 1 unless FILE holds exactly that table
"""

import hashlib
import struct
import sys

BEGIN = "// Printed by tests/key_vectors.py.\n// clang-format off\n"
END = "// clang-format on\n"


def digest(data):
    return hashlib.sha256(data).digest()[:16]


def sized(data):
    return struct.pack("<I", len(data)) + data


def namespace(fields):
    return digest(b"".join(sized(f.encode()) for f in ["penstock.namespace.v1", *fields]))


def copy_space(space, group, loss):
    return digest(sized(b"penstock.copy.v1") + space + struct.pack("<I", group) + sized(loss.encode()))


def copy_name(space, chain):
    return bytes(a ^ b for a, b in zip(space, chain))


def chains(tokens, salt, block_tokens):
    """The root chain, then that of every full block."""
    out = [digest(b"penstock.chain.v1" + struct.pack("<I", block_tokens) + sized(salt.encode()))]
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = tokens[begin:begin + block_tokens]
        out.append(digest(out[-1] + struct.pack(f"<{block_tokens}i", *block)))
    return out


def tenant(salt):
    data = sized(b"penstock.tenant.v1") + sized(salt.encode())
    return struct.unpack("<I", hashlib.sha256(data).digest()[:4])[0] if salt else 0


def quoted(text):
    return '"' + text + '"'


def table():
    """C++ rows; every token list is 0, step, 2 * step, ..."""
    lines = [BEGIN, "constexpr ChainRow kChainRows[] = {\n"]
    for salt, block_tokens, count, step in [
            ("", 32, 0, 1), ("", 32, 31, 1), ("", 32, 64, 1), ("tenant-a", 32, 64, 1),
            ("tenant-b", 32, 64, 1), ("", 16, 64, 1), ("", 1, 3, 1), ("", 1024, 2050, 7),
            ("\u00fc", 2, 5, -1)]:
        all_of = chains([i * step for i in range(count)], salt, block_tokens)
        lines.append(f"    {{{quoted(salt)}, {block_tokens}, {count}, {step}, {len(all_of) - 1},\n"
                     f"     {quoted(all_of[0].hex())}, {quoted(all_of[-1].hex())}}},\n")
    lines += ["};\n", "constexpr NamespaceRow kNamespaceRows[] = {\n"]
    for fields in [
            ["", "", "", "", "", "", ""],
            ["llama-30x576", "0123abcd", "f16", "", "absolute", "cpu-int8-v1", "exact"],
            ["llama-30x5760", "123abcd", "f16", "", "absolute", "cpu-int8-v1", "exact"],
            ["llama-30x576", "0123abcd", "f32", "lora-1", "absolute", "cpu-f32-v1", "exact"]]:
        lines.append("    {{" + ", ".join(map(quoted, fields)) + "},\n"
                     f"     {quoted(namespace(fields).hex())}}},\n")
    lines += ["};\n", "constexpr CopyRow kCopyRows[] = {\n"]
    space = namespace(["llama-30x576", "0123abcd", "f16", "", "absolute", "cpu-int8-v1", "exact"])
    chain = chains(range(32), "", 32)[-1]
    for group, loss in [(0, "exact"), (1, "exact"), (0, "kl3"), (256, "kl2")]:
        of = copy_space(space, group, loss)
        lines.append(f"    {{{group}, {quoted(loss)},\n"
                     f"     {quoted(of.hex())}, {quoted(copy_name(of, chain).hex())}}},\n")
    lines += ["};\n", "constexpr TenantRow kTenantRows[] = {\n"]
    for salt in ["", "tenant-a", "tenant-b", "\u00fc"]:
        lines.append(f"    {{{quoted(salt)}, {tenant(salt):#010x}}},\n")
    lines += ["};\n", END]
    return "".join(lines)


def main(arguments):
    if not arguments:
        print(table(), end="")
        return 0
    if len(arguments) != 2 or arguments[0] != "--check":
        print(__doc__, file=sys.stderr)
        return 2
    with open(arguments[1], encoding="utf-8") as file:
        text = file.read()
    if text.count(BEGIN) == text.count(END) == text.count(table()) == 1:
        return 0
    print(f"{arguments[1]} does not hold this table:\n{table()}", end="")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
