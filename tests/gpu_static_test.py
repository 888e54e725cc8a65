#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What can be known of GPU kernels without a GPU: what nvcc made of them, against a budget.

    tests/gpu_static_test.py LIBRARY...              checks the kernels in these static libraries
    tests/gpu_static_test.py --table LIBRARY...      prints registers, shared memory and occupancy
    tests/gpu_static_test.py --products FOLDER       checks that no program or library in this build
                                                     folder names libcuda.so.1, without which a host
                                                     that has no driver could not start it
    tests/gpu_static_test.py --self-test             plants what must be refused, and sees it refused

Per kernel and architecture: the stack frame (spills are there), no local memory, blocks that fit an SM
at once with its registers and shared memory, and instructions that must be there. A kernel without a budget is an error.

cuobjdump comes from tests/requirements.txt; exits with 77 (skipped) where it is not. readelf comes
with the compiler.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

# Of an SM: (registers, bytes of shared memory, of which each block costs some more than it asks).
# From "Compute Capabilities" of the CUDA programming guide; all three hold 64 warps and 32 blocks.
SMS = {"sm_80": (65536, 164 << 10, 1024), "sm_90": (65536, 228 << 10, 1024),
       "sm_100": (65536, 228 << 10, 1024)}
WARPS_MAX, BLOCKS_MAX = 64, 32
REGISTERS_AT_ONCE = 256  # A warp's registers are handed out in these.
SHARED_AT_ONCE = 128

# Instructions: asynchronous copies of 16 bytes, tensor cores, loads and stores of 16 bytes, shuffles that look up,
# atomics.
COPY = r"LDGSTS\.E\.BYPASS\.128"
MMA = r"IMMA\.168(16|32)\.S8\.S8"
WIDE = r"LD[GS](\.E)?(\.[A-Z]+)*\.128"
WIDE_STORE = r"STG?(\.E)?(\.[A-Z]+)*\.128"
SHUFFLE = r"SHFL\.IDX"
GLOBAL_ADD = r"(RED|REDG|ATOMG)(\.E)?(\.[A-Z0-9]+)*\.ADD"
SHARED_ADD = r"ATOMS(\.[A-Z]+)*\.(ADD|POPC)"
ATOMIC = r"(RED|REDG|ATOMG)(\.E)?(\.[A-Z]+)*\.XOR"

# (kernel's name, threads, bytes of dynamic shared memory at most, blocks per SM at least on sm_80 and on
# newer ones, bytes of stack at most, instructions)
BUDGETS = [
    (r"\bFewRowsKernel<.*, [12]>", 256, 99840, (1, 2), 0, [COPY, MMA]),
    (r"\bFewRowsKernel<.*, 4>", 128, 65024, (2, 3), 0, [COPY, MMA]),
    (r"\bFewRowsKernel<.*, 8>", 128, 95232, (1, 2), 0, [COPY, MMA]),
    (r"\bGroupRowsKernel<", 256, 55 << 10, (2, 3), 0, [COPY, MMA]),
    (r"\bManyRowsKernel<.*, 4, 1>", 256, 54 << 10, (2, 2), 0, [COPY, MMA]),
    # Some registers that are used once per stage of 128 columns are spilled.
    (r"\bManyRowsKernel<.*, 8, 2>", 256, 54 << 10, (2, 2), 32, [COPY, MMA]),
    (r"\bFloatRowsKernel<", 128, 72 << 10, (2, 2), 0, [COPY]),
    (r"\bFloatManyRowsKernel<", 256, 34 << 10, (2, 2), 0, [COPY, WIDE]),
    (r"\b(Embed|GatherRows|RmsNorm|RmsNormAdd|GateRows|TakeColumns|SumParts)Kernel\b", 256, 0, (4, 4), 0, []),
    (r"\b(Narrow|Widen)Kernel\b", 256, 0, (8, 8), 0, [WIDE, WIDE_STORE]),
    (r"\b(Unpack|Round)Kernel\b", 256, 0, (4, 4), 0, []),
    (r"\bPrepareKernel\b", 128, 8 << 10, (8, 8), 0, []),
    (r"\bEncodeKernel<", 128, 0, (7, 7), 0, [WIDE]),
    (r"\bDecodeKernel<", 128, 0, (8, 8), 0, [WIDE_STORE]),
    (r"\bSplitKernel<", 128, 0, (8, 8), 0, [SHARED_ADD, SHUFFLE]),
    (r"\bJoinKernel<", 128, 0, (8, 8), 0, []),
    (r"\bCopyUnitsKernel<.*(1|true)>", 128, 0, (8, 8), 0, [WIDE, WIDE_STORE, SHUFFLE, ATOMIC]),
    (r"\bCopyUnitsKernel<.*(0|false)>", 128, 0, (8, 8), 0, [WIDE, WIDE_STORE]),
    (r"\b(Firsts|Pieces|Cut)Kernel\b", 256, 0, (4, 4), 0, []),
    (r"\bBinsKernel\b", 256, 0, (4, 4), 0, [SHARED_ADD, GLOBAL_ADD]),
    (r"\bTokenKernel\b", 32, 0, (16, 16), 0, [SHUFFLE]),
    (r"\bClearCrcsKernel\b", 256, 0, (8, 8), 0, []),
    (r"\bMergeKernel\b", 128, 0, (5, 5), 0, []),
    (r"\bStreamKernel<\(KvDtype\)3,", 128, 51 << 10, (3, 4), 0, [COPY, WIDE]),  # Int8, with scales.
    (r"\bStreamKernel<", 128, 48 << 10, (3, 4), 0, [COPY, WIDE]),
    (r"\bTileKernel<", 128, 113 << 10, (1, 2), 8, [COPY, WIDE]),  # sm_80 and sm_100 spill two registers.
    # For the test of gpu.h only.
    (r"\bFloatKernel\b", 128, 0, (8, 8), 0, []),
    (r"\bAtomicKernel\b", 32, 0, (8, 8), 0, [ATOMIC, GLOBAL_ADD]),
    (r"\bWarpKernel\b", 32, 0, (8, 8), 0, []),
    (r"\bMmaKernel\b", 32, 0, (8, 8), 0, [MMA]),
    (r"\bCopyKernel\b", 64, 2 << 10, (8, 8), 0, [COPY]),
]


def tool(name):
    """The path of a tool of NVIDIA's, from PATH or from the packages of this Python; else None."""
    packages = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = sorted(packages.glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def demangled(names):
    lines = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                           check=True).stdout.split("\n")
    # Without parameters and namespaces: the name and its template arguments.
    short = (line.replace("(anonymous namespace)::", "") for line in lines)
    return {name: re.sub(r"^void |(\w+::)+", "", re.sub(r"\(\w[^()]*\)$|\(\)$", "", line))
            for name, line in zip(names, short)}


def parse_usage(text):
    """cuobjdump -res-usage: [(architecture, mangled kernel, {"REG": n, "STACK": n, ...})]."""
    found, arch, kernel = [], None, None
    for line in text.split("\n"):
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match[1]
        elif re.match(r"\s*REG:", line) and kernel:
            uses = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
            found.append((arch, kernel, uses))
            kernel = None
    return found


def parse_code(text):
    """cuobjdump -sass: {mangled kernel: set of instructions}."""
    code, kernel = {}, None
    for line in text.split("\n"):
        if match := re.match(r"\s*Function : (\S+)", line):
            kernel = code.setdefault(match[1], set())
        elif kernel is not None and (
                match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", line)):
            kernel.add(match[1])
    return code


def blocks_per_sm(arch, threads, registers, shared_bytes):
    """How many blocks an SM holds at once."""
    registers_max, shared_max, block_costs = SMS[arch]
    warps = (threads + 31) // 32
    per_warp = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    # Registers belong to one of the SM's four parts, with a quarter of the warps each.
    by_registers = registers_max // 4 // per_warp * 4 // warps if per_warp else BLOCKS_MAX
    shared = -(-(shared_bytes + block_costs) // SHARED_AT_ONCE) * SHARED_AT_ONCE
    return min(BLOCKS_MAX, WARPS_MAX // warps, by_registers, shared_max // shared)


def check(usage, code, code_arch, budgets, names):
    """Returns (rows of the table, faults)."""
    rows, faults = [], []
    for arch, kernel, uses in usage:
        name = names[kernel]
        budget = next((b for b in budgets if re.search(b[0], name)), None)
        if budget is None:
            faults.append(f"{name}: no budget; tests/gpu_static_test.py needs a row for it")
            continue
        _, threads, dynamic, blocks_mins, stack_max, wanted = budget
        blocks_min = blocks_mins[arch != "sm_80"]
        # From 9.0 on the compiler counts what each block costs.
        static = max(0, uses["SHARED"] - (SMS[arch][2] if arch != "sm_80" else 0))
        blocks = blocks_per_sm(arch, threads, uses["REG"], static + dynamic)
        rows.append((name, arch, uses["REG"], static, dynamic, threads, blocks))
        if uses["STACK"] > stack_max or uses["LOCAL"]:
            faults.append(f"{name} on {arch}: a stack of {uses['STACK']} bytes, at most {stack_max} "
                          f"wanted, and {uses['LOCAL']} of local memory; registers are spilled or an "
                          "array is indexed by variables")
        if blocks < blocks_min:
            faults.append(f"{name} on {arch}: {blocks} blocks per SM with {uses['REG']} registers and "
                          f"{static} + {dynamic} bytes of shared memory, at least {blocks_min} wanted")
        if arch == code_arch:
            for pattern in wanted:
                if not any(re.fullmatch(pattern + r"[\w.]*", i) for i in code.get(kernel, ())):
                    faults.append(f"{name} on {arch}: no instruction {pattern}")
    return rows, faults


def names_driver(path):
    """Whether a program or library cannot be loaded without the driver's library."""
    return "[libcuda.so" in subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True,
                                           check=False).stdout


def check_products(folder):
    """Programs and shared libraries under `folder` that name the driver's library; and their count."""
    folder = pathlib.Path(folder)
    seen, bad = 0, []
    for path in folder.rglob("*"):
        if "CMakeFiles" in path.parts or path.is_symlink() or not path.is_file():
            continue
        if any((up / "CMakeCache.txt").exists() for up in path.parents if folder in up.parents):
            continue  # Another preset's build folder inside this one.
        with path.open("rb") as file:
            head = file.read(18)
        if head[:4] != b"\x7fELF" or head[16] not in (2, 3):  # Programs and shared objects.
            continue
        seen += 1
        if names_driver(path):
            bad.append(f"{path}: names libcuda.so.1, so it starts only where a driver is")
    return seen, bad


def self_test():
    usage = parse_usage("""
arch = sm_90
 Function _Z4GoodKernelv:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:376
 Function _Z4SpillKernelv:
  REG:255 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:376
 Function _Z4NewKernelv:
  REG:8 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:376
""")
    code = parse_code("""
		Function : _Z4GoodKernelv
        /*0150*/               @!P1 LDGSTS.E.BYPASS.128 [R7], desc[UR6][R2.64], P0 ;  /* 0x0 */
		Function : _Z4SpillKernelv
        /*0150*/                   IADD3 R1, R2, R3, R4 ;  /* 0x0 */
""")
    budgets = [("Good", 128, 0, (16, 16), 0, [COPY]), ("Spill", 256, 0, (1, 2), 8, [COPY])]
    names = {k: k for _, k, _ in usage}
    rows, faults = check(usage, code, "sm_90", budgets, names)
    want = ["Spill.*a stack of 16 bytes, at most 8", "Spill.*1 blocks per SM with 255 registers.*at least 2 wanted",
            "Spill.*no instruction LDGSTS", "NewKernel.*no budget"]
    failed = [w for w in want if not any(re.search(w, f) for f in faults)]
    failed += [f for f in faults if "Good" in f]
    # As the occupancy calculator has them.
    for arch, threads, registers, shared, blocks in (
            ("sm_80", 256, 64, 0, 4), ("sm_80", 256, 65, 0, 3), ("sm_90", 128, 168, 0, 3),
            ("sm_90", 128, 32, 100 << 10, 2), ("sm_80", 128, 32, 100 << 10, 1),
            ("sm_90", 32, 16, 0, 32), ("sm_100", 1024, 32, 0, 2), ("sm_100", 1024, 64, 0, 1)):
        got = blocks_per_sm(arch, threads, registers, shared)
        if got != blocks:
            failed.append(f"{arch}, {threads} threads, {registers} registers, {shared} bytes: {got} "
                          f"blocks, not {blocks}")
    if len(rows) != 2:
        failed.append(f"{len(rows)} rows, not 2")
    print("\n".join(failed) if failed else "self-test: all found")
    return 1 if failed else 0


def main(arguments):
    if arguments[:1] == ["--self-test"]:
        return self_test()
    if arguments[:1] == ["--products"]:
        seen, bad = check_products(arguments[1])
        print("\n".join(bad) if bad else f"{seen} programs and libraries start without a driver")
        return 1 if bad or seen == 0 else 0
    table = arguments[:1] == ["--table"]
    libraries = arguments[1:] if table else arguments
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        print("skipped: no cuobjdump; ./dev test installs it with tests/requirements.txt")
        return 77
    missing = [library for library in libraries if not pathlib.Path(library).is_file()]
    if missing or not libraries:
        print("not built:", *missing)
        return 1
    kernels, all_faults = 0, []
    for library in libraries:
        usage = parse_usage(output(cuobjdump, "-res-usage", library))
        code = parse_code(output(cuobjdump, "-sass", "-arch", "sm_90", library))
        names = demangled(sorted({kernel for _, kernel, _ in usage}))
        rows, faults = check(usage, code, "sm_90", BUDGETS, names)
        kernels += len(rows)
        all_faults += faults
        if table:
            for name, arch, registers, static, dynamic, threads, blocks in sorted(rows):
                print(f"{name:34} {arch:6} {registers:3} registers {static:5} + {dynamic:6} bytes "
                      f"{threads:4} threads {blocks:2} blocks/SM")
    print(*all_faults, f"{kernels} kernels x architectures, {len(all_faults)} faults", sep="\n")
    return 1 if all_faults or kernels == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
