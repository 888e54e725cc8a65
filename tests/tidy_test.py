#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the tree that a machine can check.

    tests/tidy_test.py [FOLDER]     checks the tree at FOLDER (this repository); prints one line per
                                    violation, and exits with 1 when there was one
    tests/tidy_test.py --self-test  plants every violation in a temporary tree and sees it reported

Standard library only.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

# Who may include whom; a folder always includes itself. A new folder needs a row here and in README.
# For cli, bench and tests: everything that is not one of these three, or anything.
LIBRARIES = {
    "base": set(),
    "device": {"base"},
    "launch": {"base"},
    "rpc": {"base"},
    "kernels": {"base", "device"},
    "model": {"base", "kernels"},
    "transfer": {"base", "device", "kernels"},
    "engine": {"base", "device", "kernels", "model", "transfer"},
    "kvstore": {"base", "device", "kernels", "transfer", "rpc"},
    "worker": {"base", "device", "engine", "kvstore", "transfer", "rpc"},
    "prefill": {"base", "device", "model", "engine", "kvstore", "transfer", "worker", "rpc"},
    "decode": {"base", "device", "model", "engine", "kvstore", "transfer", "worker", "rpc"},
    "coordinator": {"base", "rpc"},
    "gateway": {"base", "model", "rpc"},
    # And, of every service, its *_state.h.
    "sim": {"base", "transfer", "kvstore", "coordinator"},
}
ARROWS = LIBRARIES | {
    "cli": set(LIBRARIES),
    "bench": set(LIBRARIES) | {"cli"},
    "tests": set(LIBRARIES) | {"cli", "bench"},
}
SERVICES = {"prefill", "decode", "gateway", "coordinator", "kvstore"}

LINES_MAX = 500
SPDX = "SPDX-License-Identifier: Apache-2.0"
CPP = {".h", ".cc", ".cu", ".cuh"}
SCRIPTS = {".py", ".sh", ".cmake"}
PROSE = {".md", ".json", ".yml", ".yaml"}
# Inputs of tests, byte for byte as some other program wrote them.
DATA_FOLDERS = ("tests/corpus/", "tests/golden/")

GRPC = re.compile(r"^(grpc\+*/|grpc|.*\.pb\.h$)")
GRPC_FILES = re.compile(r"^rpc/|(_service|_client)(_test|_testing)?\.(h|cc)$|(^|/)main\.cc$")
# Written so that this file does not match itself.
MACHINE_PATH = re.compile("(?<![\\w.~$}])/(?:" + "|".join(["tmp", "work", "home", "root"]) + ")/")

# (what to say, pattern, does the rule hold for the file at this path). Applied to code without
# comments and strings.
CODE_RULES = [
    ("only base/ reads clocks: take `now` or a Clock (SteadyClock() of base/time.h)",
     re.compile(r"\b\w*_clock\s*::\s*now\b|\bclock_gettime\b|\bgettimeofday\b"),
     lambda path: not path.startswith("base/")),
    # A stand-in is told as what it stands for.
    ("no getenv outside cli/", re.compile(r"\b(secure_)?getenv\b"),
     lambda path: not path.startswith(("cli/", "device/standin_words", "device/nvml_standin"))),
    ("no detached threads: the owner joins", re.compile(r"(\.|->)\s*detach\s*\("),
     lambda path: True),
    ("no sleeps: wait for the event itself, with a deadline",
     re.compile(r"\bsleep_for\b|\bsleep_until\b|\busleep\b|\bnanosleep\b|\bSleepFor\b"),
     lambda path: True),
]
PY_SLEEP = re.compile(r"\btime\.sle" + r"ep\b")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TOKENS = re.compile(
    r'R"(?P<tag>[^()\\\s]{0,16})\(.*?\)(?P=tag)"'  # raw string
    r'|"(?:\\.|[^"\\\n])*"'  # string
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"  # character, but not the ' of 1'000
    r"|//[^\n]*|/\*.*?\*/", re.DOTALL)


def files_of(root):
    """What git tracks or would track; every file where there is no git repository."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False) if (root / ".git").exists() else None
    if listed and listed.returncode == 0:
        names = sorted(set(listed.stdout.decode().split("\0")) - {""})
        return [name for name in names if (root / name).is_file()]
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders
                      if f not in {".git", ".cache", "__pycache__"} and not f.startswith("build")]
        names += [os.path.relpath(os.path.join(folder, f), root) for f in files]
    return sorted(names)


def blank(match):
    """A comment or literal, reduced to its newlines, so that line numbers stay."""
    return " " + "\n" * match.group().count("\n")


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def check_include(path, quoted, target):
    """Violations of one #include, as messages."""
    folder = path.split("/")[0]
    if GRPC.match(target) and not GRPC_FILES.search(path):
        return ["only rpc/, *_service, *_client, their tests and main.cc may include gRPC or "
                "generated headers: " + target]
    if not quoted or "/" not in target:
        return []
    to = target.split("/")[0]
    if to not in ARROWS or folder not in ARROWS or to == folder or to in ARROWS[folder]:
        return []
    if folder == "sim" and to in SERVICES and target.endswith("_state.h"):
        return []
    return [f"{folder}/ must not include {to}/: {target}"]


def check_cpp(path, text):
    found = []
    if path.split("/")[0] not in ARROWS:
        found.append((1, f"{path.split('/')[0]}/ has no row in the table of includes"))
    # Comments go first, so that an #include inside one does not count.
    uncommented = TOKENS.sub(lambda m: blank(m) if m.group().startswith("/") else m.group(), text)
    for match in INCLUDE.finditer(uncommented):
        for message in check_include(path, match.group(1) == '"', match.group(2)):
            found.append((line_of(uncommented, match.start(2)), message))
    code = TOKENS.sub(blank, text)
    for message, pattern, holds in CODE_RULES:
        if holds(path):
            found += [(line_of(code, m.start()), message) for m in pattern.finditer(code)]
    if path.endswith((".h", ".cuh")) and "#pragma once" not in text:
        found.append((1, "a header needs #pragma once"))
    return found


def check_file(path, text):
    """Violations in one file: (line, message)."""
    name, suffix = os.path.basename(path), os.path.splitext(path)[1]
    lines = text.split("\n")
    script = suffix in SCRIPTS or name == "CMakeLists.txt" or lines[0].startswith("#!")
    source = suffix in CPP or suffix == ".proto" or script
    if not source and suffix not in PROSE:
        return []
    found = []
    if source and not any(SPDX in line for line in lines[:3]):
        found.append((1, "no SPDX line (" + SPDX + ")"))
    if source and len(lines) - 1 > LINES_MAX:
        found.append((LINES_MAX, f"{len(lines) - 1} lines, more than {LINES_MAX}: split it"))
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            found.append((number, "trailing whitespace"))
        if MACHINE_PATH.search(line):
            found.append((number, "a path of one machine: " + MACHINE_PATH.search(line).group()))
        if path.startswith("tests/") and suffix == ".py" and PY_SLEEP.search(line):
            found.append((number, "no sleeps: wait for the event itself, with a deadline"))
    if text and not text.endswith("\n"):
        found.append((len(lines), "no newline at the end"))
    if suffix in CPP:
        found += check_cpp(path, text)
    return found


def check_format(root, paths):
    """Lines that clang-format would write otherwise, the first of each file. Nothing where there is
    no .clang-format or no clang-format 14: another version has other opinions."""
    if not paths or not (root / ".clang-format").exists() or not shutil.which("clang-format-14"):
        return []
    run = subprocess.run(["clang-format-14", "--dry-run", *paths], cwd=root, text=True,
                         stderr=subprocess.PIPE, check=True)
    lines = {}
    for path, line in re.findall(r"^(.+?):(\d+):\d+: warning:", run.stderr, re.MULTILINE):
        lines.setdefault(path, line)
    return [f"{path}:{line}: not as clang-format writes it (./dev format mends it)"
            for path, line in lines.items()]


def check_tree(root):
    """All violations below `root`, as `path:line: message`, and the number of files read."""
    found, count, cpp = [], 0, []
    for path in files_of(root):
        if path.startswith(DATA_FOLDERS) and os.path.splitext(path)[1] not in SCRIPTS:
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # Not a text.
        count += 1
        found += [f"{path}:{line}: {message}" for line, message in check_file(path, text)]
        if os.path.splitext(path)[1] in CPP:
            cpp.append(path)
    return found + check_format(root, cpp), count


# Path, contents after the SPDX line, and a part of what must be said; None: nothing may be.
SELF_TEST = [
    ("base/up.h", '#pragma once\n#include "device/device.h"\n', "base/ must not include device/"),
    ("base/fine.h", '#pragma once\n#include "base/time.h"\n', None),
    ("model/down.cc", '#include "device/device.h"\n', "model/ must not include device/"),
    ("model/fine.cc", '#include "kernels/ops.h"\n#include "absl/status/status.h"\n', None),
    ("model/comment.cc", '// #include "engine/pool.h"\n/*\n#include "engine/pool.h"\n*/\n', None),
    ("prefill/a.cc", '#include "decode/decode_state.h"\n', "prefill/ must not include decode/"),
    ("decode/a.cc", '#include "prefill/prefill_state.h"\n', "decode/ must not include prefill/"),
    ("sim/fine.cc", '#include "decode/decode_state.h"\n', None),
    ("sim/a.cc", '#include "decode/decode.h"\n', "sim/ must not include decode/"),
    ("engine/cli.cc", '#include "cli/flags.h"\n', "engine/ must not include cli/"),
    ("bench/fine.cc", '#include "engine/pool.h"\n#include "cli/flags.h"\n', None),
    ("misc/a.cc", "int x;\n", "misc/ has no row"),
    ("engine/clock.cc", "auto t = std::chrono::steady_clock::now();\n", "only base/ reads clocks"),
    ("engine/clock2.cc", "using C = std::chrono::system_clock;\nauto t = system_clock ::now();\n",
     "only base/ reads clocks"),
    ("base/clock.cc", "auto t = std::chrono::steady_clock::now();\n", None),
    ("tests/clock.cc", "auto t = std::chrono::steady_clock::now();\n", "only base/ reads clocks"),
    ("model/env.cc", 'auto* x = std::getenv("X");\n', "no getenv outside cli/"),
    ("cli/env.cc", 'auto* x = std::getenv("X");\n', None),
    ("engine/detach.cc", "thread.detach();\n", "no detached threads"),
    ("engine/sleep.cc", "std::this_thread::sleep_for(1ms);\n", "no sleeps"),
    ("engine/word.cc", 'const char* x = "sleep_for";  // No getenv, no sleep_for.\n', None),
    ("engine/raw.cc", 'auto x = R"(" sleep_for)"; int n = 1\'000; f(\'"\');\n', None),
    ("engine/after.cc", "int n = 1'000;\nauto* x = getenv(\"X\");\n", "after.cc:3: no getenv"),
    ("tests/a.py", "import time\ntime.sle" + "ep(1)\n", "no sleeps"),
    ("engine/rpc.cc", "#include <grpcpp/grpcpp.h>\n", "may include gRPC"),
    ("engine/pb.cc", '#include "proto/penstock.pb.h"\n', "may include gRPC"),
    ("decode/decode_service.cc", "#include <grpcpp/grpcpp.h>\n", None),
    ("decode/decode_service_test.cc", "#include <grpcpp/grpcpp.h>\n", None),
    ("engine/space.cc", "int x; \n", "space.cc:2: trailing whitespace"),
    ("engine/path.cc", 'auto x = "/ho' + 'me/me/model";\n', "a path of one machine"),
    ("engine/long.cc", "int x;\n" * 500, "501 lines, more than 500"),
    ("engine/long_fine.cc", "int x;\n" * 499, None),
    ("engine/newline.cc", "int x;", "no newline at the end"),
    ("engine/once.h", "int x;\n", "needs #pragma once"),
]
SELF_TEST_SPDX = [("base/a.cc", "int x;\n"), ("base/CMakeLists.txt", "project(x)\n"),
                  ("tests/b.py", "x = 1\n"), ("run", "#!/bin/sh\n"), ("x.sh", "true\n")]


def self_test():
    """Plants each violation alone, then sees that it and nothing else is reported."""
    failures = []
    for path, body, want in SELF_TEST:
        comment = "# " if path.endswith(".py") else "// "
        failures += plant(path, comment + SPDX + "\n" + body, want)
    for path, body in SELF_TEST_SPDX:
        failures += plant(path, body, "no SPDX line")
    failures += plant("tests/corpus/a.py.txt", "x \n", None)
    if shutil.which("clang-format-14"):
        failures += plant("base/ugly.cc", "// " + SPDX + "\nint  x;\n", "not as clang-format")
    for failure in failures:
        print(failure)
    print(f"self-test: {len(failures)} failures")
    return 1 if failures else 0


def plant(path, text, want):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if want and "clang-format" in want:
            (pathlib.Path(folder) / ".clang-format").write_text("BasedOnStyle: Google\n")
        found, _ = check_tree(pathlib.Path(folder))
    if want is None:
        return [f"self-test: {path} is fine but was reported: {f}" for f in found]
    if len(found) == 1 and want in found[0]:
        return []
    return [f"self-test: {path}: want one report with '{want}', got {found}"]


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) > 1 or (arguments and not os.path.isdir(arguments[0])):
        print(__doc__, file=sys.stderr)
        return 2
    default = pathlib.Path(__file__).resolve().parent.parent
    found, count = check_tree(pathlib.Path(arguments[0]) if arguments else default)
    for line in found:
        print(line)
    print(f"{count} files, {len(found)} violations")
    if count == 0:
        print("no files: is this the repository?")
    return 1 if found or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
