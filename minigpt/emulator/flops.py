"""Counts floating-point operations where they are, in the machine code: the assembly of a checked build gets an
addition to a counter before each straight piece with arithmetic in it. What is counted is what was executed, exactly,
and a kernel's source need not change.

An addition, subtraction, multiplication or division of floats or doubles is one FLOP, fmaf() two. Comparisons,
conversions, the arithmetic of addresses, and functions such as expf(), sqrtf() and fmaxf() are none.

That the machine code does what the source says is the compiler's business: fused multiply-adds, vectors, and work done
before it is known to be needed are turned off (build.py), and what is constant is computed once, as nvcc does it too.
"""

import platform
import re
import sys

COUNTED = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")   # whose assembly is known here

ARITHMETIC = re.compile(r"\tv?(?:add|sub|mul|div)s[sd]\t")
FUSED = re.compile(r"\t(?:call|jmp)q?\tfmaf?(?:@PLT)?$")
ENDS = re.compile(r"\S+:|\t(?:j|call|ret|ud2)")                # of a straight piece: a label, or where it may be left
# lea is the addition that leaves the flags alone; r11 may hold something.
COUNT = ("\tpushq\t%r11\n\tmovq\temulator_flops(%rip), %r11\n\tleaq\t{}(%r11), %r11\n"
         "\tmovq\t%r11, emulator_flops(%rip)\n\tpopq\t%r11\n")


def counting(assembly: str) -> str:
    """The assembly of a compilation with -mno-red-zone (the counting pushes a register), which counts its FLOPs in the
    runtime's emulator_flops."""
    out, piece, flops = [], 0, 0                               # out[piece:]: since the last label or jump
    for line in assembly.splitlines(keepends=True):
        text = line.rstrip()
        flops += 1 if ARITHMETIC.match(text) else 2 if FUSED.match(text) else 0
        out.append(line)
        if ENDS.match(text):
            if flops:
                out.insert(piece, COUNT.format(flops))
            piece, flops = len(out), 0
    return "".join(out)
