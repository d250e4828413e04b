// What kernels need from here is in cuda_on_cpu.h, which every file of theirs includes first.
