// What the compiler calls in a checked library. With -fsanitize=thread it inserts a call before every read and write,
// meant for its own race detector; these are the functions it calls, and ours. With -fsanitize=bounds it checks indices
// of arrays whose size it knows, those in registers among them.
#include "checks.h"

using namespace emulator;

#define HERE code_of(__builtin_return_address(0))
#define ENTRY extern "C" __attribute__((noinline)) void

#define SIZED(n)                                                           \
  ENTRY __tsan_read##n(const void* p) { saw(p, n, READ, HERE); }           \
  ENTRY __tsan_write##n(const void* p) { saw(p, n, WRITE, HERE); }         \
  ENTRY __tsan_unaligned_read##n(const void* p) { saw(p, n, READ, HERE); } \
  ENTRY __tsan_unaligned_write##n(const void* p) { saw(p, n, WRITE, HERE); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
ENTRY __tsan_read_range(const void* p, size_t bytes) { saw(p, bytes, READ, HERE); }
ENTRY __tsan_write_range(const void* p, size_t bytes) { saw(p, bytes, WRITE, HERE); }
ENTRY __tsan_init() {}
ENTRY __tsan_func_entry(void*) {}
ENTRY __tsan_func_exit() {}
ENTRY __tsan_vptr_update(void**, void*) {}
ENTRY __tsan_vptr_read(void**) {}

// Copies of structs, for which clang calls memcpy: cuda_on_cpu.h turns that into this.
extern "C" void* emulator_memcpy(void* to, const void* from, size_t bytes) {
  saw(from, bytes, READ, HERE);
  saw(to, bytes, WRITE, HERE);
  return std::memmove(to, from, bytes);
}

// What the compiler hands over with an index that is out of bounds.
struct ArrayIndexed {
  struct Type {
    uint16_t kind, info;
    char name[1];  // "'float [32][33]'"
  };
  const char* file;
  uint32_t line, column;
  const Type *array, *index;
};

ENTRY __ubsan_handle_out_of_bounds(const ArrayIndexed* access, uint64_t index) {
  if (current == nullptr) return;
  found("out of bounds",
        text("thread %d uses the index %lld in {0}, out of bounds of an array %s", current->id,
             static_cast<long long>(index), access->array->name),
        "An index goes from 0 to the size minus 1. The kernel was ended here; a GPU goes on, with somebody else's "
        "memory.",
        Where(access->file, static_cast<int>(access->line)));
  end_launch();
}
