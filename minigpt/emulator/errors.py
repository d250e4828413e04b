"""A compiler's words, in the order in which a student reads them: first the mistakes in their own lines, then how the
compiler came there, which for a launch leads through the C++ library. What CUDA's toolkit has and the emulator has not
is named."""

import re

NOT_FOUND = re.compile(r"fatal error: '?([\w./-]+?)'?(?:: No such file or directory| file not found)")
TOOLKIT = {"cooperative_groups": "cooperative groups", "curand": "cuRAND", "mma.h": "wmma", "cub/": "CUB",
           "thrust/": "Thrust", "cublas": "cuBLAS", "cufft": "cuFFT", "cuda/": "libcu++", "cuda_bf16": "cuda_bf16.h",
           "cuda_fp8": "cuda_fp8.h", "helper_": "the helpers of the CUDA samples", "device_functions": "this header",
           "texture": "textures", "nvrtc": "NVRTC", "cudnn": "cuDNN", "cusparse": "cuSPARSE", "cusolver": "cuSOLVER"}
LINES = 60                                # as many as a student can use; templates and headers make thousands


def readable(words: str, files) -> str:
    """`words` of the compiler about `files`, the author's own."""
    lines = words.strip().splitlines()
    own = [i for i, line in enumerate(lines) if "error: " in line and line.startswith(tuple(files))]
    if own and own[0] > 3:
        first = [line for i in own for line in _with_its_lines(lines, i)]
        lines = [*first, "", "All that the compiler says:", *lines]
    if (missing := NOT_FOUND.search(words)) and (what := _of_the_toolkit(missing[1])):
        lines = [f"the emulator has no {what}: {missing[1]} of CUDA's toolkit is not there", *lines]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"... and {len(lines) - LINES:,} more lines"]
    return "\n".join(lines)


def _with_its_lines(lines, i):
    """An error and what belongs to it: the lines of the source that are shown below it, and where a name is from."""
    end = i + 1
    while end < len(lines) and (lines[end].startswith(" ") or lines[end].endswith("note: declared here")):
        end += 1
    return lines[i:end]


def _of_the_toolkit(header):
    return next((what for begin, what in TOOLKIT.items() if header.startswith(begin)), None)
