// The checks: every read and write of a kernel comes here, before it happens.
//
// For every few bytes of an array there is a cell that remembers who wrote them last, who read them since, and when.
// Time is counted in eras: a new one begins with every block and every barrier of a block. Two accesses of which one is
// a write are a race if nothing orders them: threads of one block in the same era (lanes of one warp: unless a
// __syncwarp lies between them), or two blocks of one launch. Blocks run one after another here, so the era also says
// which block it was.
#include "checks.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace emulator {
namespace {

// ------------------------------------------------------------------------------------------------------------ cells

struct Access {
  uint32_t era = 0;
  Code code = 0;
  uint32_t who = 0;  // thread (10 bits), whether atomic (1), and the thread's clock (21)
  int thread() const { return static_cast<int>(who & 1023); }
  bool atomic() const { return who >> 10 & 1; }
  uint32_t clock() const { return who >> 11; }
};

struct Cell {
  Access write, read, other_read;  // the last of each; `other_read` by a thread as far as possible from that of `read`
  bool filled = false;             // by the host
  bool in_flight = false;          // an asynchronous copy to here is under way; `write` is its issue
};

struct Region {
  std::string name;
  uint64_t begin = 0, end = 0;
  Space space = GLOBAL;
  size_t element = 0;  // bytes; 0: it has no elements, places in it are bytes
  int dimensions = 1;
  std::vector<size_t> extents;  // of all dimensions but the first
  bool filled = true;           // global memory that holds something from the start
  bool freed = false;
  bool given = false;        // by Python, for one call
  uint32_t declared_in = 0;  // shared arrays: the era of the last block that came by
  int shift = 2;             // bytes a cell: 4, until somebody touches less
  std::vector<Cell> cells;

  uint64_t base() const { return begin & ~uint64_t{15}; }
  Cell* cell(uint64_t address) { return &cells[(address - base()) >> shift]; }
  void refine(int to) {
    size_t factor = size_t{1} << (shift - to);
    std::vector<Cell> fine(cells.size() * factor);
    for (size_t i = 0; i < fine.size(); ++i) fine[i] = cells[i / factor];
    cells.swap(fine);
    shift = to;
  }
};

std::vector<std::unique_ptr<Region>> regions;
Region* by_code[1024];  // where an instruction's last access was: most likely the next one is there too
Region dynamic_region;

bool watching = false;
uint32_t era = 1, block_era = 1, launch_era = 1;
size_t declared_bytes = 0;  // of the block's __shared__ arrays, as far as they have come into sight
uint32_t clock_of[MAX_THREADS];
uint32_t seen[MAX_THREADS][WARP];  // [i][l]: the clock of lane l of i's warp up to which i knows what it did

// The library that this is linked into: its machine code, and its constants.
uint64_t image_begin = 0, image_end = 0;

__attribute__((constructor)) void find_image() {  // as soon as it is loaded
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&find_image), &info);
  image_begin = reinterpret_cast<uint64_t>(info.dli_fbase);
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void*) {
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const auto& segment = library->dlpi_phdr[i];
          uint64_t begin = library->dlpi_addr + segment.p_vaddr;
          if (segment.p_type == PT_LOAD && library->dlpi_addr == image_begin)
            image_end = std::max<uint64_t>(image_end, begin + segment.p_memsz);
        }
        return 0;
      },
      nullptr);
}

std::vector<Where> wheres;

// ------------------------------------------------------------------------------------------------------------ words

// "tile[2][33]", "x[-1]", "byte 96 of the dynamic shared memory".
const char* element_name(const Region& r, uint64_t address) {
  int64_t offset = static_cast<int64_t>(address - r.begin);
  if (r.element == 0) return text("byte %lld of %s", static_cast<long long>(offset), r.name.c_str());
  if (r.dimensions == 0 && offset == 0) return text("%s", r.name.c_str());
  int64_t size = static_cast<int64_t>(r.element);
  int64_t index = offset >= 0 ? offset / size : -((size - 1 - offset) / size);
  std::string indices;
  bool inside = address >= r.begin && address < r.end;
  for (size_t d = r.extents.size(); d-- > 0 && inside;) {
    indices = "[" + std::to_string(index % static_cast<int64_t>(r.extents[d])) + "]" + indices;
    index /= static_cast<int64_t>(r.extents[d]);
  }
  return text("%s[%lld]%s", r.name.c_str(), static_cast<long long>(index), indices.c_str());
}

const char* verb(Kind kind) { return kind == READ ? "reads" : kind == WRITE ? "writes" : "changes (atomically)"; }
const char* past(Kind kind) { return kind == READ ? "read" : kind == WRITE ? "wrote" : "changed (atomically)"; }

// found() would know as well, but the words for it take time to put together.
bool first_time(const char* kind, Code here, Code other) {
  return !found_again(kind, place_of(here), other == 0 ? Place() : place_of(other));
}

void report_race(const Region& r, uint64_t address, Kind kind, Code code, const Access& prior, Kind prior_kind) {
  const bool one_warp = prior.thread() / WARP == current->id / WARP;
  const bool first = first_time("race", code, prior.code);
  if (!first && !one_warp) across_warps(place_of(code), place_of(prior.code));
  if (!first) return;
  const char* element = element_name(r, address);
  if (prior.era < block_era) {
    found(
        "race",
        text("thread %d of block %lld %s %s in {0}, which a thread of another block %s in {1}. Blocks run at the same "
             "time and in any order",
             current->id, static_cast<long long>(block_number), verb(kind), element, past(prior_kind)),
        "Let blocks write to different places, or use atomics, or split the kernel in two launches. (A block may read "
        "what others wrote if they called __threadfence() and then counted themselves with an atomic.)",
        place_of(code), place_of(prior.code));
    return;
  }
  const bool adds = r.space == GLOBAL && kind != ATOMIC;
  found(
      "race",
      text("thread %d %s %s in {0}, which thread %d %s in {1}, and no barrier lies between the two", current->id,
           verb(kind), element_name(r, address), prior.thread(), past(prior_kind)),
      adds ? "{barrier} Where several add to one element: atomicAdd()." : "{barrier}",  // Python knows which, and where
      place_of(code), place_of(prior.code));
  if (!one_warp) across_warps(place_of(code), place_of(prior.code));
}

void report_in_flight(const Region& r, uint64_t address, Kind kind, Code code, const Access& issue) {
  if (!first_time("copy", code, issue.code)) return;
  found("copy",
        text("thread %d %s %s in {0}, while the asynchronous copy to it that thread %d began in {1} may still be under "
             "way",
             current->id, verb(kind), element_name(r, address), issue.thread()),
        "Commit the copy to a group (cp_async_commit), wait for that group (cp_async_wait), then __syncthreads(): the "
        "wait is for a thread's own copies, the barrier for those of the others.",
        place_of(code), place_of(issue.code));
}

void report_empty(const Region& r, uint64_t address, Code code) {
  if (!first_time("uninitialised", code, 0)) return;
  found("uninitialised",
        text("thread %d reads %s in {0}, which %s", current->id, element_name(r, address),
             r.space == SHARED ? "no thread of this block has written yet" : "nothing has been written to"),
        "Memory holds anything until it is written: write every element that is read, the rest of a tile at the end of "
        "the data too.",
        place_of(code));
}

// Does the CPU have something there? Memory of kernels is looked for first.
bool is_mapped(uint64_t address) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return msync(reinterpret_cast<void*>(address / page * page), 1, MS_ASYNC) == 0;
}

[[noreturn]] void report_outside(const Region* near, uint64_t address, size_t bytes, Kind kind, Code code) {
  const char* words;
  const char* mend =
      "Check the index against the size before the access; the last block and the last tile are usually not full.";
  if (near == &dynamic_region) {
    words = text("thread %d %s %s in {0}, out of bounds: the launch gives %zu bytes of dynamic shared memory",
                 current->id, verb(kind), element_name(*near, address), launched->shared_bytes);
    mend =
        "The third number of a launch, kernel<<<grid, block, bytes>>>, is the size of the extern __shared__ array in "
        "bytes, sizeof(float) for each float; left out, it is 0.";
  } else if (address < 4096) {
    words = text("thread %d %s through a null pointer in {0}", current->id, verb(kind));
    mend = "The array was given as None, or cudaMalloc() did not set the pointer: look at what it returns.";
  } else if (near == nullptr) {
    const bool of_cpu = is_mapped(address);
    words =
        text("thread %d %s %zu bytes in {0} at 0x%llx, which %sbelongs to no array of the kernel", current->id,
             verb(kind), bytes, static_cast<unsigned long long>(address), of_cpu ? "is memory of the CPU and " : "");
    if (of_cpu)
      mend =
          "Is it a variable of the launcher, or from malloc() or new? A GPU has no access to it: cudaMalloc() and "
          "cudaMemcpy(), or hand over the value.";
  } else if (near->freed) {
    words = text("thread %d %s %s in {0}, after it was freed", current->id, verb(kind), element_name(*near, address));
  } else {
    const char* element = element_name(*near, address);
    size_t size = near->element == 0 ? 1 : near->element;
    words = text("thread %d %s %s in {0}, out of bounds: %s has %zu %s", current->id, verb(kind), element,
                 near->name.c_str(), static_cast<size_t>(near->end - near->begin) / size,
                 near->element == 0                ? "bytes"
                 : near->end - near->begin == size ? "element"
                                                   : "elements");
  }
  found("out of bounds", words,
        text("%s The kernel was ended here; a GPU may go on, with somebody else's memory.", mend), place_of(code));
  end_launch();
}

// ------------------------------------------------------------------------------------------------------ every access

// The region that holds the address; or null, and `near` is the closest one if there is one within a MiB.
Region* region_of(uint64_t address, Code code, Region*& near) {
  Region*& guess = by_code[code % 1024];
  if (guess != nullptr && address >= guess->begin && address < guess->end && !guess->freed) return guess;
  near = nullptr;
  uint64_t distance = 1 << 20;
  auto look = [&](Region* r) {
    if (address >= r->begin && address < r->end) return near = r, !r->freed;
    uint64_t d = address < r->begin ? r->begin - address : address - r->end + 1;
    if (d < distance) distance = d, near = r;
    return false;
  };
  if (address - dynamic_region.begin < MAX_DYNAMIC_SHARED) {  // however little of it the launch gives
    near = &dynamic_region;
    return address < dynamic_region.end ? guess = near : nullptr;
  }
  for (auto& r : regions)
    if (look(r.get())) return guess = r.get();
  return nullptr;
}

// A block may hand what it wrote to a later one: __threadfence(), then an atomic on a counter, on which the other does
// an atomic too ("the last block adds up"). By counter: the eras that blocks have let go of, in their order.
struct Eras {
  uint32_t begin, end;
};
std::unordered_map<uint64_t, std::vector<Eras>> let_go;
std::vector<std::pair<const std::vector<Eras>*, size_t>> acquired;  // by this block: so many of each
bool fenced[MAX_THREADS];                                           // has the thread called __threadfence()?

bool handed_over(uint32_t prior) {
  for (auto [list, n] : acquired) {
    auto end = list->begin() + static_cast<std::ptrdiff_t>(n);
    auto after =
        std::upper_bound(list->begin(), end, prior, [](uint32_t e, const Eras& eras) { return e < eras.begin; });
    if (after != list->begin() && prior <= (after - 1)->end) return true;
  }
  return false;
}

void hand_over(uint64_t counter) {
  if (let_go.empty() && !fenced[current->id]) return;
  std::vector<Eras>& list = let_go[counter];
  acquired.emplace_back(&list, list.size());
  if (!fenced[current->id]) return;
  if (list.empty() || list.back().begin != block_era) list.push_back({block_era, era});
  list.back().end = era;
}

// Does nothing order the earlier access before what the current thread does now?
bool unordered(const Access& prior, Space space) {
  if (prior.era == era) {
    int i = prior.thread(), me = current->id;
    return i != me && (i / WARP != me / WARP || seen[me][i % WARP] < prior.clock());
  }
  return space == GLOBAL && prior.era >= launch_era && prior.era < block_era && !handed_over(prior.era);
}

void remember_read(Cell& cell, const Access& me) {
  if (cell.read.era == me.era && cell.read.thread() == me.thread()) {
    cell.read = me;
    return;
  }
  bool keep = cell.other_read.era == me.era && cell.other_read.thread() / WARP != me.thread() / WARP &&
              cell.read.thread() / WARP == me.thread() / WARP;
  keep = keep || (cell.other_read.era >= launch_era && cell.other_read.era < block_era && cell.read.era >= block_era);
  if (!keep) cell.other_read = cell.read;
  cell.read = me;
}

void touch_cell(Region& r, Cell& cell, uint64_t address, Kind kind, const Access& me) {
  const Access w = cell.write;
  if (cell.in_flight && w.era >= block_era) {
    report_in_flight(r, address, kind, me.code, w);
    return;
  }
  bool written = r.space == SHARED ? w.era >= block_era : r.filled || cell.filled || w.era != 0;
  if (kind != WRITE && !written) {
    report_empty(r, address, me.code);
  } else if (!(kind == ATOMIC && w.atomic()) && unordered(w, r.space)) {
    report_race(r, address, kind, me.code, w, w.atomic() ? ATOMIC : WRITE);
  } else if (kind != READ) {
    for (const Access& read : {cell.read, cell.other_read})
      if (unordered(read, r.space)) report_race(r, address, kind, me.code, read, READ);
  }
  if (kind == READ)
    remember_read(cell, me);
  else
    cell.write = me;
}

void check_alignment(const Region& r, uint64_t address, size_t bytes, size_t multiple, Kind kind, Code code) {
  if (address % multiple == 0 || !first_time("misaligned", code, 0)) return;
  found("misaligned",
        text("thread %d %s %zu bytes at once at %s in {0}, an address that is no multiple of %zu", current->id,
             verb(kind), bytes, element_name(r, address), multiple),
        "A GPU stops there. Vector accesses such as float4 need an address that is a multiple of their size: check "
        "the row length and the offset, and declare shared arrays with __align__(16).",
        place_of(code));
}

// The launcher is code of the CPU.
void check_launcher(const void* pointer, Kind kind, Code code) {
  if (launched != nullptr || !in_launcher()) return;
  if (const Allocation* a = allocation_of(pointer); a != nullptr && !a->managed)
    leave_launcher(
        text("the launcher %s the memory allocated in line %d in {0}: the CPU has no access to memory of the "
             "GPU",
             verb(kind), a->where.line),
        place_of(code), "Bring it over by cudaMemcpy(), or let a kernel do it. The launcher was ended here.");
}

// Checks [address, address + bytes); returns where it lies, or null for what is not the kernel's memory but allowed.
Region* touch(uint64_t address, size_t bytes, Kind kind, Code code) {
  Region* near = nullptr;
  Region* r = region_of(address, code, near);
  if (r == nullptr) {
    uint64_t call = reinterpret_cast<uint64_t>(launched->call);
    if (address >= call && address < call + launched->call_bytes) return nullptr;  // the kernel's own arguments
    bool behind = near != nullptr && near->space == SHARED && address >= near->end &&
                  (near == &dynamic_region || address < (near->end | 127) + 1);
    if (address >= image_begin && address < image_end && !behind) return nullptr;  // constants, threadIdx
    report_outside(near, address, bytes, kind, code);
  }
  if (address + bytes > r->end) report_outside(r, r->end, bytes, kind, code);
  if (bytes <= 16) check_alignment(*r, address, bytes, bytes & -bytes, kind, code);  // of three floats: that of one
  if (r->cells.empty()) r->cells.resize(((r->end - r->base()) >> r->shift) + 1);
  if (uint64_t both = address | bytes; both & ((1u << r->shift) - 1)) r->refine(__builtin_ctzll(both));
  Access me{era, code,
            static_cast<uint32_t>(current->id) | (kind == ATOMIC ? 1u << 10 : 0u) | clock_of[current->id] << 11};
  Cell* last = r->cell(address + bytes - 1);
  for (Cell* cell = r->cell(address); cell <= last; ++cell) touch_cell(*r, *cell, address, kind, me);
  return r;
}

}  // namespace

void saw(const void* pointer, size_t bytes, Kind kind, Code code) {
  if (current == nullptr) return check_launcher(pointer, kind, code);
  if (!watching || on_fiber_stack(pointer)) return;
  if (interrupted) stop(place_of(code));
  uint64_t address = reinterpret_cast<uint64_t>(pointer);
  if (const Region* r = touch(address, bytes, kind, code)) counters::log(address, bytes, r->space, kind, code);
}

Code code_of(const void* return_address) {
  return static_cast<Code>(reinterpret_cast<uint64_t>(return_address) - 1 - image_begin);  // in the call itself
}

Place place_of(Code code) {
  if (code >> 31) return Place(wheres[code & 0x7fffffff]);
  return code == 0 ? Place() : Place(reinterpret_cast<const void*>(image_begin + code));
}

Code code_of(Where where) {
  for (size_t i = 0; i < wheres.size(); ++i)
    if (wheres[i].line == where.line && wheres[i].file == where.file) return 1u << 31 | static_cast<Code>(i);
  wheres.push_back(where);
  return 1u << 31 | static_cast<Code>(wheres.size() - 1);
}

void saw_atomic(const void* address, size_t bytes, Where where) {
  if (!watching || current == nullptr) return;
  hand_over(reinterpret_cast<uint64_t>(address));
  saw(address, bytes, ATOMIC, code_of(where));
}

void fence() { fenced[current->id] = true; }

// A __shared__ array comes into sight: the first thread of a block to pass its declaration finds it empty.
void shared_array(const char* name, void* address, size_t bytes, size_t element, const size_t* extents,
                  int dimensions) {
  if (!watching) return;
  uint64_t begin = reinterpret_cast<uint64_t>(address);
  Region* region = nullptr;
  for (auto& r : regions)
    if (r->begin == begin && r->space == SHARED) region = r.get();
  if (region == nullptr) {
    regions.push_back(std::make_unique<Region>());
    region = regions.back().get();
    region->name = name;
    region->begin = begin;
    region->end = begin + bytes;
    region->space = SHARED;
    region->element = element;
    region->dimensions = dimensions;
    if (dimensions > 1) region->extents.assign(extents, extents + dimensions - 1);
  }
  if (region->declared_in == block_era) return;
  region->declared_in = block_era;
  std::memset(address, 0xff, bytes);
  declared_bytes += bytes;
  counters::static_shared(declared_bytes);
  if (declared_bytes > MAX_STATIC_SHARED || declared_bytes + launched->shared_bytes > shared_limit()) {
    found("launch",
          text("not launched in {0}: %zu bytes of __shared__ arrays and %zu of dynamic shared memory; a block has "
               "at most %d KiB of the first, and %d KiB of both on compute capability %d.%d",
               declared_bytes, launched->shared_bytes, static_cast<int>(MAX_STATIC_SHARED >> 10),
               static_cast<int>(shared_limit() >> 10), options.capability / 10, options.capability % 10),
          "Make the tiles smaller; more than 48 KiB has to be dynamic: extern __shared__.", launched->where);
    end_launch();
  }
}

// --------------------------------------------------------------------------------------------------------- the hooks

namespace checks {

void before_launch() {
  watching = launched->checked;
  if (!watching) return;
  launch_era = ++era;
  let_go.clear();
  dynamic_region.name = "the dynamic shared memory";
  dynamic_region.space = SHARED;
  dynamic_region.begin = reinterpret_cast<uint64_t>(dynamic_shared());
  dynamic_region.end = dynamic_region.begin + launched->shared_bytes;
  if (dynamic_region.cells.empty()) dynamic_region.cells.resize(MAX_DYNAMIC_SHARED >> dynamic_region.shift);
  counters::before_launch();
}

void before_block() {
  if (!watching) return;
  block_era = ++era;
  declared_bytes = 0;
  for (int i = 0; i < MAX_THREADS; ++i) clock_of[i] = 1;
  std::memset(seen, 0, sizeof seen);
  std::memset(fenced, 0, sizeof fenced);
  acquired.clear();
  counters::before_block();
}

void after_launch(bool cut_short) {
  if (watching) counters::after_launch(cut_short);
  watching = false;
}

void after_barrier() {
  if (!watching) return;
  ++era;
  counters::barrier();
}

// The lanes of the mask now know of each other all that was done before.
void after_warp_barrier(uint32_t mask) {
  if (!watching) return;
  int first = current->id / WARP * WARP;
  uint32_t all[WARP] = {};
  for (int l = 0; l < WARP; ++l) {
    if (!(mask >> l & 1)) continue;
    for (int j = 0; j < WARP; ++j) all[j] = std::max(all[j], seen[first + l][j]);
    all[l] = std::max(all[l], clock_of[first + l]);
  }
  for (int l = 0; l < WARP; ++l) {
    if (!(mask >> l & 1)) continue;
    std::copy(all, all + WARP, seen[first + l]);
    ++clock_of[first + l];
  }
}

void before_copy(const AsyncCopy& copy) {
  if (!watching) return;
  Code code = code_of(copy.where);
  const size_t bytes = static_cast<size_t>(copy.bytes), valid = static_cast<size_t>(copy.valid);
  const uint64_t from = reinterpret_cast<uint64_t>(copy.from), to = reinterpret_cast<uint64_t>(copy.to);
  Region* near;
  if (valid > 0) {
    saw(copy.from, valid, READ, code);
    if (Region* r = region_of(from, code, near)) check_alignment(*r, from, bytes, bytes, READ, code);
  }
  saw(copy.to, bytes, WRITE, code);
  if (Region* r = region_of(to, code, near))
    for (Cell *cell = r->cell(to), *last = r->cell(to + bytes - 1); cell <= last; ++cell) cell->in_flight = true;
}

void after_copy(const AsyncCopy& copy) {
  if (!watching) return;
  uint64_t to = reinterpret_cast<uint64_t>(copy.to);
  Code code = code_of(copy.where);
  Region* near;
  if (Region* r = region_of(to, code, near))
    for (Cell *cell = r->cell(to), *last = r->cell(to + static_cast<size_t>(copy.bytes) - 1); cell <= last; ++cell) {
      cell->in_flight = false;
      cell->write = {era, code, static_cast<uint32_t>(current->id) | clock_of[current->id] << 11};
    }
}

void shared_row(const void* row, Where where) { saw(row, 16, READ, code_of(where)); }

// ------------------------------------------------------------------------------------------------------ global memory

void allocated(void* pointer, size_t bytes, Where where) {
  uint64_t begin = reinterpret_cast<uint64_t>(pointer);
  std::fill(std::begin(by_code), std::end(by_code), nullptr);
  auto replaced = [&](const auto& r) { return r->freed && r->begin < begin + bytes && begin < r->end; };
  regions.erase(std::remove_if(regions.begin(), regions.end(), replaced), regions.end());
  auto r = std::make_unique<Region>();
  r->name = text("the memory allocated in line %d", where.line);
  r->begin = begin;
  r->end = begin + bytes;
  r->filled = false;
  regions.push_back(std::move(r));
}

void released(void* pointer) {
  for (auto& r : regions)
    if (r->begin == reinterpret_cast<uint64_t>(pointer)) r->freed = true;
}

void filled(const void* pointer, size_t bytes) {
  uint64_t begin = reinterpret_cast<uint64_t>(pointer);
  for (auto& r : regions) {
    if (r->filled || begin < r->begin || begin >= r->end) continue;
    if (begin == r->begin && begin + bytes >= r->end) {
      r->filled = true;
      continue;
    }
    if (r->cells.empty()) r->cells.resize(((r->end - r->base()) >> r->shift) + 1);
    if (uint64_t both = begin | bytes; both & ((1u << r->shift) - 1)) r->refine(__builtin_ctzll(both));
    for (Cell* cell = r->cell(begin); cell <= r->cell(std::min(begin + bytes, r->end) - 1); ++cell) cell->filled = true;
  }
}

const char* array_of(uint64_t address, int64_t& offset) {
  Region* near;
  const Region* r = region_of(address, 0, near);
  offset = r == nullptr ? 0 : static_cast<int64_t>(address - r->begin);
  return r == nullptr ? "" : r->name.c_str();
}

// A kernel sees copies of Python's arrays, each with nothing near it, so that what is out of bounds is nobody's. Arrays
// that overlap (q, k and v in one projection) stay together.
struct Given {
  std::string name;
  char *begin, *end;
  size_t element;
  bool writable;
  char* copy = nullptr;
};
std::vector<Given> given;

void add_array(const char* name, void* address, size_t bytes, size_t element, bool writable) {
  Given g{name, static_cast<char*>(address), static_cast<char*>(address) + bytes, element, writable};
  for (size_t i = 0; i < given.size();) {
    if (given[i].begin < g.end && g.begin < given[i].end) {
      g.name = given[i].name + ", " + g.name;
      g.begin = std::min(g.begin, given[i].begin);
      g.end = std::max(g.end, given[i].end);
      g.writable |= given[i].writable;
      given.erase(given.begin() + static_cast<std::ptrdiff_t>(i));
      i = 0;
    } else {
      ++i;
    }
  }
  given.push_back(g);
}

void* guarded(void* address) {
  char* p = static_cast<char*>(address);
  for (Given& g : given) {
    if (p < g.begin || p >= std::max(g.end, g.begin + 1)) continue;
    size_t bytes = static_cast<size_t>(g.end - g.begin);
    if (g.copy == nullptr) {
      g.copy = map_apart(bytes);
      if (g.copy == nullptr) return address;
      std::memcpy(g.copy, g.begin, bytes);
      auto r = std::make_unique<Region>();
      r->name = g.name;
      r->begin = reinterpret_cast<uint64_t>(g.copy);
      r->given = true;
      r->end = r->begin + bytes;
      r->element = g.element;
      regions.push_back(std::move(r));
    }
    return g.copy + (p - g.begin);
  }
  return address;
}

bool array_around(const void* pointer, const char*& begin, const char*& end, const char*& name) {
  const char* p = static_cast<const char*>(pointer);
  for (const Given& g : given) {
    const size_t around = g.copy != nullptr ? GAP : 0;
    begin = g.copy != nullptr ? g.copy : g.begin;
    end = begin + (g.end - g.begin);
    name = g.name.c_str();
    if (p >= begin - around && p < end + around) return true;
  }
  return false;
}

bool is_of_cpu(const void* pointer) {
  const char* p = static_cast<const char*>(pointer);
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  auto near = [&](const Given& g) {
    const char* begin = g.copy != nullptr ? g.copy : g.begin;
    return p >= begin - GAP && p < begin + (g.end - g.begin) + GAP;
  };
  return (address < image_begin || address >= image_end) && std::none_of(given.begin(), given.end(), near);
}

void copy_back() {
  for (const Given& g : given)
    if (g.copy != nullptr && g.writable) std::memcpy(g.begin, g.copy, static_cast<size_t>(g.end - g.begin));
}

void forget_arrays() {
  for (const Given& g : given)
    if (g.copy != nullptr) unmap_apart(g.copy, static_cast<size_t>(g.end - g.begin));
  given.clear();
  std::fill(std::begin(by_code), std::end(by_code), nullptr);
  regions.erase(std::remove_if(regions.begin(), regions.end(), [](const auto& r) { return r->given || r->freed; }),
                regions.end());
}

}  // namespace checks
}  // namespace emulator
