// Memory: what launchers allocate, and the asynchronous copies of kernels.
//
// An asynchronous copy may happen at any time between its issue and the wait for it. The emulator does it as late as
// allowed, or as early (options.copies_early): a missing wait shows in the one, a buffer refilled too soon in the
// other.
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>
#include <map>

#include "checks.h"
#include "runtime.h"

namespace emulator {

Where copying{nullptr, 0};

namespace {

cudaError_t last_error = cudaSuccess;
size_t shared_allowed = 0;
std::map<char*, Allocation> allocations;  // not yet released

// What the launcher asks for cannot be done, and is not.
cudaError_t refuse(const char* kind, const char* words, const char* mend, Where where) {
  found(kind, words, mend, where);
  return last_error = cudaErrorInvalidValue;
}

// Null if [pointer, pointer + bytes) may be memory of the GPU (or of the CPU), as far as is known, or else why not.
const char* wrong_side(const void* pointer, bool on_gpu) {
  const Allocation* a = allocation_of(pointer);
  if (on_gpu && a == nullptr && checks::is_of_cpu(pointer)) return "memory of the CPU";
  return !on_gpu && a != nullptr && !a->managed ? "memory of the GPU" : nullptr;
}

constexpr const char* SIZE_IN_BYTES =
    "Sizes are in bytes: so many elements times sizeof(float). It was left out here; a GPU gives an error, or somebody "
    "else's memory is changed.";

// Reports what does not hold the bytes that are read or written; true if it did.
bool does_not_fit(const char* doing, const void* pointer, size_t bytes, Where where) {
  const char *begin, *end, *name;
  if (const Allocation* a = allocation_of(pointer)) {
    begin = a->begin, end = a->begin + a->bytes;
    name = text("the memory allocated in line %d", a->where.line);
  } else if (!checks::array_around(pointer, begin, end, name)) {
    return false;
  }
  const char* p = static_cast<const char*>(pointer);
  if (p >= begin && p <= end && bytes <= static_cast<size_t>(end - p)) return false;
  refuse(
      "out of bounds",
      text("the launcher %s %lld bytes from byte %lld of %s in {0}, out of bounds: it has %lld bytes", doing,
           static_cast<long long>(bytes), static_cast<long long>(p - begin), name, static_cast<long long>(end - begin)),
      SIZE_IN_BYTES, where);
  return true;
}

size_t whole_pages(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

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

// Memory with nothing near it, so that what is out of its bounds is nobody's. Null if there is none.
char* map_apart(size_t bytes) {
  if (bytes > size_t{1} << 46) return nullptr;
  void* map =
      mmap(nullptr, whole_pages(bytes) + 2 * GAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(map) + GAP;
  if (mprotect(begin, whole_pages(bytes), PROT_READ | PROT_WRITE) == 0) return begin;
  unmap_apart(begin, bytes);
  return nullptr;
}

void unmap_apart(char* begin, size_t bytes) { munmap(begin - GAP, whole_pages(bytes) + 2 * GAP); }

const Allocation* allocation_of(const void* pointer) {
  const char* p = static_cast<const char*>(pointer);
  auto after = allocations.upper_bound(const_cast<char*>(p) + GAP);
  if (after == allocations.begin()) return nullptr;
  const Allocation& a = std::prev(after)->second;
  return p < a.begin + whole_pages(a.bytes) + GAP ? &a : nullptr;
}

cudaError_t allocate(void** pointer, size_t bytes, Where where, bool managed) {
  char* begin = map_apart(bytes);
  if (begin == nullptr) return *pointer = nullptr, last_error = cudaErrorMemoryAllocation;
  *pointer = begin;
  std::memset(begin, 0xff, bytes);  // NaN, whatever the type
  allocations[begin] = {begin, bytes, where, managed};
  checks::allocated(begin, bytes, where);
  return cudaSuccess;
}

cudaError_t release(void* pointer, Where where) {
  if (pointer == nullptr) return cudaSuccess;
  auto a = allocations.find(static_cast<char*>(pointer));
  if (a == allocations.end())
    return refuse("launcher", "cudaFree() in {0} is given a pointer that cudaMalloc() did not return, or that is free",
                  "Free each pointer once, as it came from cudaMalloc().", where);
  checks::released(pointer);
  unmap_apart(a->first, a->second.bytes);
  allocations.erase(a);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, Where where, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr)
    return refuse("launcher", text("the copy in {0} %s a null pointer", to == nullptr ? "goes to" : "comes from"),
                  "Does the pointer come from a cudaMalloc() that succeeded?", where);
  if (does_not_fit("copies", from, bytes, where) || does_not_fit("writes", to, bytes, where)) return last_error;
  const bool to_gpu = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_gpu = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const char* wrong_to = kind != cudaMemcpyDefault ? wrong_side(to, to_gpu) : nullptr;
  const char* wrong_from = kind != cudaMemcpyDefault ? wrong_side(from, from_gpu) : nullptr;
  if (wrong_to != nullptr || wrong_from != nullptr)
    return refuse("launcher",
                  text("the direction of the copy in {0} is wrong: it %s %s", wrong_to ? "goes to" : "comes from",
                       wrong_to ? wrong_to : wrong_from),
                  "cudaMemcpy(to, from, bytes, direction): cudaMemcpyHostToDevice from the CPU to the GPU, "
                  "cudaMemcpyDeviceToHost back. It was left out here; on a GPU it is undefined.",
                  where);
  copying = where;
  std::memmove(to, from, bytes);
  copying = {nullptr, 0};
  checks::filled(to, bytes);
  return cudaSuccess;
}

bool fits(size_t symbol, size_t offset, size_t bytes, Where where) {
  if (bytes <= symbol && offset <= symbol - bytes) return true;
  refuse("out of bounds",
         text("the launcher copies %lld bytes at byte %lld of a symbol in {0}, out of bounds: it has %zu bytes",
              static_cast<long long>(bytes), static_cast<long long>(offset), symbol),
         SIZE_IN_BYTES, where);
  return false;
}

cudaError_t set(void* pointer, int value, size_t bytes, Where where) {
  if (bytes == 0) return cudaSuccess;
  const char* wrong = pointer == nullptr ? "a null pointer" : wrong_side(pointer, true);
  if (wrong != nullptr)
    return refuse("launcher", text("cudaMemset() in {0} is given %s", wrong),
                  "It fills memory of the GPU, from cudaMalloc().", where);
  if (does_not_fit("sets", pointer, bytes, where)) return last_error;
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
