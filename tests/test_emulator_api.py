"""The parts of CUDA's headers that files of a course use, beyond kernels and launches: 16-bit floats, symbols, managed
memory, the properties of a device."""

import numpy as np
import pytest
from test_emulator import cu, needs_emulator

from minigpt import emulator

__all__ = ["cu"]                          # a fixture
pytestmark = needs_emulator


def test_every_half_is_a_float_and_back(cu):
    kernels = emulator.compile(cu("""#include <cuda_fp16.h>
__global__ void to_float(const half* x, float* y) {
  int i = blockIdx.x * 1024 + threadIdx.x;
  y[i] = __half2float(x[i]);
}
__global__ void to_half(const float* x, half* y, int n) {
  int i = blockIdx.x * 1024 + threadIdx.x;
  if (i < n) y[i] = __float2half(x[i]);
}
extern "C" void widen(const half* x, float* y) { to_float<<<64, 1024>>>(x, y); }
extern "C" void narrow(const float* x, half* y, int n) { to_half<<<(n + 1023) / 1024, 1024>>>(x, y, n); }
"""), checked=False)
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    wide = np.empty(65536, np.float32)
    kernels.widen(every, wide)
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    finite = np.unique(wide[np.isfinite(wide)])
    between = (finite[1:] + finite[:-1]) / 2                                       # ties
    x = np.concatenate([wide, between, np.nextafter(between, 9e9), np.nextafter(between, -9e9),
                        np.float32([65519.99, 65520, -65520, 1e-9, -1e-9, 1e30])]).astype(np.float32)
    narrow = np.empty(len(x), np.float16)
    kernels.narrow(x, narrow, len(x))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, x.astype(np.float16))


def test_arithmetic_of_halves_is_numpys(cu):
    kernels = emulator.compile(cu("""#include <cuda_fp16.h>
__global__ void kernel(const __half* a, const __half* b, __half* y, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  y[i] = a[i] + b[i];
  y[n + i] = __hsub(a[i], b[i]);
  __half2 product = __hmul2(__halves2half2(a[i], b[i]), __half2half2(b[i]));
  y[2 * n + i] = __low2half(product);
  y[3 * n + i] = __high2half(product);
  y[4 * n + i] = a[i] / b[i];
  y[5 * n + i] = hsqrt(__habs(a[i]));
  y[6 * n + i] = __hmax(a[i], b[i]) > __hmin(-a[i], b[i]) ? __float2half(1) : __half(0);
  y[7 * n + i] = a[i];
  y[7 * n + i] += b[i];
  atomicAdd(&y[8 * n], __float2half(1.0f));
}
extern "C" void run(const __half* a, const __half* b, __half* y, int n) { kernel<<<1, 256>>>(a, b, y, n); }
"""))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=200).astype(np.float16) for _ in range(2))
    y = np.zeros(8 * 200 + 1, np.float16)
    kernels.run(a, b, y, 200)
    largest, least = np.maximum(a, b), np.minimum(-a, b)
    for got, expected in zip(y[:-1].reshape(8, 200), (a + b, a - b, a * b, b * b, a / b, np.sqrt(abs(a)),
                                                      largest > least, a + b), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert y[-1] == 200


SYMBOLS = """
__constant__ float weights[4];
__device__ int counter;
__global__ void kernel(const float* x, float* y) {
  y[threadIdx.x] = weights[threadIdx.x % 4] * x[threadIdx.x];
  atomicAdd(&counter, 1);
}
extern "C" cudaError_t run(const float* w, const float* x, float* y, int* count) {
  int zero = 0;
  cudaMemcpyToSymbol(counter, &zero, sizeof zero);
  cudaMemcpyToSymbol(weights, w, 2 * sizeof(float));
  cudaMemcpyToSymbol(weights, w + 2, 2 * sizeof(float), 2 * sizeof(float), cudaMemcpyHostToDevice);
  kernel<<<1, 64>>>(x, y);
  cudaMemcpyFromSymbol(count, counter, sizeof(int));
  void* address;
  cudaGetSymbolAddress(&address, counter);
  return address == &counter ? cudaGetLastError() : cudaErrorIllegalAddress;
}
extern "C" int too_much(const float* w) {
  int wrong = cudaMemcpyToSymbol(weights, w, sizeof(float), 13) == cudaErrorInvalidValue;
  wrong += cudaMemcpyToSymbol(weights, w, (size_t)-8, 16) == cudaErrorInvalidValue;
  return wrong + (cudaMemcpyFromSymbol((void*)w, weights, 5 * sizeof(float)) == cudaErrorInvalidValue);
}
"""


@pytest.mark.parametrize("checked", [True, False])
def test_symbols(cu, checked):
    kernels = emulator.compile(cu(SYMBOLS), checked=checked)
    w, x, y, count = np.float32([1, 2, 3, 4]), np.ones(64, np.float32), np.zeros(64, np.float32), np.zeros(1, np.int32)
    for n in (1, 2):
        assert kernels.run(w * n, x, y, count) == 0
        assert (y == np.tile(w * n, 16)).all() and count[0] == 64
    with emulator.watch() as report:
        assert kernels.too_much(w) == 3
    assert ["of a symbol in kernel.cu" in f.text for f in report.findings] == [True] * 3


def test_managed_memory_is_the_cpus_too(cu):
    kernels = emulator.compile(cu("""__global__ void twice(float* x, int n) {
  if (threadIdx.x < n) x[threadIdx.x] *= 2;
}
extern "C" float run(int n, int far) {
  float *x, sum = 0;
  if (cudaMallocManaged(&x, n * sizeof(float)) != cudaSuccess) return -1;
  for (int i = 0; i < n; ++i) x[i] = i;
  twice<<<1, 32>>>(x, n + far);
  cudaDeviceSynchronize();
  for (int i = 0; i < n; ++i) sum += x[i];
  cudaFree(x);
  return sum;
}
"""))
    assert kernels.run(5, 0) == 20
    with pytest.raises(emulator.KernelError, match=r"kernel\.cu:2"):
        kernels.run(5, 1)


def test_the_properties_of_a_device(cu):
    kernels = emulator.compile(cu("""extern "C" void run(int* y) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  int values[] = {p.multiProcessorCount, p.warpSize, p.maxThreadsPerBlock, (int)p.sharedMemPerBlock, p.major >= 7};
  for (int i = 0; i < 5; ++i) y[i] = values[i];
}
"""))
    y = np.zeros(5, np.int32)
    kernels.run(y)
    assert y.tolist() == [4, 32, 1024, 48 << 10, 1]
