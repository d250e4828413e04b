// Memory: what launchers allocate, and the asynchronous copies of kernels.
//
// An asynchronous copy may happen at any time between its issue and the wait for it. The emulator does it as late as
// allowed, or as early (options.copies_early): a missing wait shows in the one, a buffer refilled too soon in the
// other.
#include <unordered_set>

#include "checks.h"
#include "runtime.h"

namespace emulator {

Where copying{nullptr, 0};

namespace {

cudaError_t last_error = cudaSuccess;
size_t shared_allowed = 0;
std::unordered_set<void*> allocated;  // and not yet released

void perform(const AsyncCopy& copy) {
  if (copy.valid > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
  if (copy.valid < copy.bytes) std::memset(copy.to + copy.valid, 0, static_cast<size_t>(copy.bytes - copy.valid));
}

void finish(Thread& t, size_t copies) {
  for (size_t i = 0; i < copies; ++i) {
    if (!options.copies_early) perform(t.copies[i]);
    checks::after_copy(t.copies[i]);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(copies));
}

}  // namespace

void copy_async(void* to, const void* from, int bytes, int valid, Where where) {
  AsyncCopy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes, valid, where};
  checks::before_copy(copy);
  if (options.copies_early) perform(copy);
  current->copies.push_back(copy);
}

void copy_async_commit(Where) {
  int grouped = 0;
  for (int n : current->groups) grouped += n;
  current->groups.push_back(static_cast<int>(current->copies.size()) - grouped);
}

void copy_async_wait(int still_flying, Where where) {
  Thread& t = *current;
  if (skipped("wait", where)) return;
  if (still_flying < 0) {
    finish(t, t.copies.size());
    t.groups.clear();
    return;
  }
  int finished_groups = static_cast<int>(t.groups.size()) - still_flying;
  if (finished_groups <= 0) return;
  int copies = 0;
  for (int i = 0; i < finished_groups; ++i) copies += t.groups[static_cast<size_t>(i)];
  t.groups.erase(t.groups.begin(), t.groups.begin() + finished_groups);
  finish(t, static_cast<size_t>(copies));
}

void finish_copies(Thread& t) {
  if (!t.copies.empty()) finish(t, t.copies.size());
}

void set_last_error(cudaError_t error) { last_error = error; }
size_t dynamic_shared_allowed() { return shared_allowed; }

cudaError_t allow_dynamic_shared(int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > shared_limit()) return last_error = cudaErrorInvalidValue;
  if (static_cast<size_t>(bytes) > shared_allowed) shared_allowed = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t allocate(void** pointer, size_t bytes, Where where) {
  *pointer = std::aligned_alloc(256, (bytes + 511) / 256 * 256);  // with a gap behind it
  if (*pointer == nullptr) return last_error = cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xff, bytes);  // NaN, whatever the type
  allocated.insert(*pointer);
  checks::allocated(*pointer, bytes, where);
  return cudaSuccess;
}

cudaError_t release(void* pointer, Where) {
  if (pointer != nullptr && allocated.erase(pointer) == 0) return last_error = cudaErrorInvalidValue;
  checks::released(pointer);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, Where where) {
  if (bytes > 0 && (to == nullptr || from == nullptr)) return last_error = cudaErrorInvalidValue;
  copying = where;
  std::memmove(to, from, bytes);
  copying = {nullptr, 0};
  checks::filled(to, bytes);
  return cudaSuccess;
}

cudaError_t set(void* pointer, int value, size_t bytes, Where where) {
  if (bytes > 0 && pointer == nullptr) return last_error = cudaErrorInvalidValue;
  copying = where;
  std::memset(pointer, value, bytes);
  copying = {nullptr, 0};
  checks::filled(pointer, bytes);
  return cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return "unspecified launch failure";
  }
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = MAX_THREADS;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrWarpSize:
      *value = WARP;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;  // few, so that a persistent grid stays small here
    case cudaDevAttrComputeCapabilityMajor:
      *value = options.capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = options.capability % 10;
      break;
    default:
      *value = static_cast<int>(shared_limit());
  }
  return cudaSuccess;
}
