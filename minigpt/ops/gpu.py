"""The GPU as cuda_call.py needs it: minigpt/_cuda.so, which setup.py builds with nvcc, through ctypes.

Arrays on the GPU are used where they lie. NumPy arrays, and all else in the CPU's memory, are copied there before a
launch, and those that the kernel writes are copied back: simple, and slow. Launches of torch tensors go to torch's
current stream and do not wait.
"""

import contextlib
import ctypes
import sys
from pathlib import Path

import numpy as np

from ..emulator import launchers
from .cuda_arrays import View, device, owner

LIBRARY = Path(__file__).parent.parent / "_cuda.so"


class GPU:
    """ImportError, saying why in one line, where there is no library or no GPU for it."""

    def __init__(self):
        if not LIBRARY.exists():
            raise ImportError("the CUDA kernels were not built; `minigpt doctor` says what is missing")
        try:
            self._library = ctypes.CDLL(str(LIBRARY))
        except OSError as error:
            raise ImportError(f"the CUDA kernels do not load ({error})") from None
        for name in ("use", "describe", "allocate", "free", "copy", "last_error", "synchronize", "architectures"):
            getattr(self._library, f"gpu_{name}").restype = ctypes.c_char_p
        problem = ctypes.c_char_p()
        if not self._library.gpu_count(ctypes.byref(problem)):
            raise ImportError(f"no GPU: {(problem.value or b'none is installed').decode()}")
        name, capability = ctypes.create_string_buffer(256), ctypes.c_int()
        self._do("describe", 0, name, 256, ctypes.byref(capability))
        self.name, self.capability = name.value.decode(), capability.value
        built = self._library.gpu_architectures().decode()
        if self.capability < min(map(int, built.split())):
            raise ImportError(f"the CUDA kernels were built for sm_{built.split()[0]} and later, but this GPU "
                              f"({self.name}) is sm_{self.capability}; build them again: pip install -e .")

    def _do(self, name, *arguments):
        problem = getattr(self._library, f"gpu_{name}")(*arguments)
        if problem:
            raise RuntimeError(f"CUDA: {problem.decode()}")

    def has(self, rung):
        """Kernels that need more than any architecture that was built for are not in the library."""
        return rung.runs_on(self.capability) and hasattr(self._library, rung.signature.name)

    def refuse(self, op, x):
        """All arrays are welcome."""

    def in_place(self, x):
        return device(x) is not None

    def launch(self, rung, arguments, like):
        signature = rung.signature
        number = next((device(x) for x in arguments if device(x) is not None), 0)
        if any(device(x) not in (None, number) for x in arguments):
            raise ValueError(f"{rung.op}: the arrays are on several GPUs, must be on one")
        torch = sys.modules.get("torch") if isinstance(like, View) and hasattr(owner(like), "data_ptr") else None
        on_gpu = torch and device(like) is not None
        stream = torch.cuda.current_stream(number).cuda_stream if on_gpu else 0
        function = getattr(self._library, signature.name)
        function.restype, function.argtypes = None, [p.ctype for p in signature.parameters]
        with contextlib.ExitStack() as after:
            if on_gpu:
                after.enter_context(torch.cuda.device(number))     # and back to the caller's when this is over
            self._do("use", number)
            words, copies = [], False
            for parameter, x in zip(signature.parameters, arguments, strict=False):         # all but the stream
                word = launchers.argument(rung.op, parameter, x, contiguous=False)
                if isinstance(x, np.ndarray) and device(x) is None:
                    word = self._copied(x, word, parameter, after)
                    copies = True
                words.append(word)
            if copies and stream:               # copies are in the default stream, for which torch's others do not wait
                self._do("synchronize")
                after.callback(self._do, "synchronize")
            function(*words, stream)
            self._do("last_error")

    def _copied(self, x, address, parameter, after):
        """The address of a copy of x on the GPU, which is freed, and first copied back if the kernel may write it,
        when `after` closes."""
        memory = ctypes.c_void_p()
        self._do("allocate", ctypes.byref(memory), ctypes.c_size_t(x.nbytes))
        after.callback(self._do, "free", memory)
        self._do("copy", memory, ctypes.c_void_p(address), ctypes.c_size_t(x.nbytes))
        if not parameter.const:
            after.callback(self._do, "copy", ctypes.c_void_p(address), memory, ctypes.c_size_t(x.nbytes))
        return memory
