// Runs the threads of a launch: block after block, and in a block one thread until it has to wait, then the next.
//
// A thread that never waits costs no switch: it is a function call, and the next thread is called from the same stack.
// A thread that waits keeps its stack, a fiber, and the next thread runs on another one. Who is ready is a bit: one
// word a warp, one word for the block.
#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>

#include "checks.h"
#include "runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Thread* current = nullptr;
const Launch* launched = nullptr;
Thread threads[MAX_THREADS];
int64_t block_number = 0;

namespace {

// Lanes and warps are scheduled by position, the order of their turns, which need not be that of their numbers.
struct Warp {
  uint32_t ready = 0;     // by position: lanes that could run now
  uint32_t paused = 0;    // by position: lanes that go on when no other is ready
  uint32_t waiting = 0;   // by lane: those in a warp operation
  uint32_t returned = 0;  // by lane: those that have returned, or never were (a block of 48 threads)
  int lane_at[WARP], position_of[WARP];
  void* args[WARP];                      // of the lanes that are waiting
  const Operation* operation = nullptr;  // what they wait for, with this mask ...
  uint32_t mask = 0;
  bool mixed = false;  // ... unless they differ
};
Warp warps[MAX_WARPS];
int warp_at[MAX_WARPS], warp_position[MAX_WARPS];
uint32_t ready_warps = 0;  // by position: warps with a lane that could run, or is paused

int thread_count = 0, alive = 0, arrived = 0;  // threads of the block; not returned; waiting at its barrier
Where barrier_where;                           // where the first of those waits
int barrier_sum = 0, barrier_result = 0;       // __syncthreads_count and its relatives

Fiber* running = nullptr;
std::vector<Fiber*> all_fibers, idle_fibers;
bool ended_early = false;
alignas(1024) char padded[1024 + MAX_DYNAMIC_SHARED];
char* const dynamic = padded + 1024;  // what lies just behind a __shared__ array is not in here

void make_ready(const Thread& t) {
  Warp& warp = warps[t.id / WARP];
  warp.ready |= 1u << warp.position_of[t.id % WARP];
  ready_warps |= 1u << warp_position[t.id / WARP];
}

void make_ready(int w, uint32_t lanes) {
  Warp& warp = warps[w];
  if (options.warp_order == FORWARD) {  // positions are lanes
    warp.ready |= lanes;
  } else {
    for (; lanes != 0; lanes &= lanes - 1) warp.ready |= 1u << warp.position_of[__builtin_ctz(lanes)];
  }
  ready_warps |= 1u << warp_position[w];
}

// Takes the next thread that can run, one of warp w if there is one; null when all wait.
Thread* take_ready(int w) {
  if ((warps[w].ready | warps[w].paused) == 0) {
    if (ready_warps == 0) return nullptr;
    w = warp_at[__builtin_ctz(ready_warps)];
  }
  Warp& warp = warps[w];
  if (warp.ready == 0) {
    counters::flush(w);
    std::swap(warp.ready, warp.paused);
  }
  int position = __builtin_ctz(warp.ready);
  warp.ready &= warp.ready - 1;
  if ((warp.ready | warp.paused) == 0) ready_warps &= ~(1u << warp_position[w]);
  return &threads[w * WARP + warp.lane_at[position]];
}

void become(Thread* t) {
  current = t;
  threadIdx = t->index;
}

void switch_to(Fiber* fiber) {
  Fiber* from = running;
  running = fiber;
  switch_fiber(from, fiber);
}

void fiber_main();

Fiber* take_fiber() {
  if (idle_fibers.empty()) {
    all_fibers.push_back(new_fiber(fiber_main));
    return all_fibers.back();
  }
  Fiber* fiber = idle_fibers.back();
  idle_fibers.pop_back();
  return fiber;
}

[[noreturn]] void report_deadlock();

// The current thread cannot go on: others run until somebody makes it ready and its turn comes.
void wait() {
  current->fiber = running;
  Thread* next = take_ready(current->id / WARP);
  if (next == nullptr) report_deadlock();
  if (next == current) return;
  become(next);
  switch_to(next->fiber != nullptr ? next->fiber : take_fiber());
}

// Threads of the block that `belongs` says, as "0 to 31, 40".
template <class Belongs>
const char* thread_ranges(Belongs belongs) {
  static char list[160];
  size_t used = 0;
  list[0] = 0;
  for (int i = 0; i < thread_count; ++i) {
    if (!belongs(threads[i])) continue;
    int first = i;
    while (i + 1 < thread_count && belongs(threads[i + 1])) ++i;
    if (used > sizeof list - 40) return std::strcat(list, ", ...");
    used += static_cast<size_t>(
        std::snprintf(list + used, sizeof list - used, i > first ? "%s%d to %d" : "%s%d", used ? ", " : "", first, i));
  }
  return list;
}

// ------------------------------------------------------------------------------------------------- the block's barrier

void release_barrier() {
  if (alive < thread_count)
    found("barrier",
          text("%d of the %d threads of the block wait at __syncthreads() in {0}; the others never come, because they "
               "have returned: threads %s",
               arrived, thread_count, thread_ranges([](const Thread& t) { return t.returned; })),
          "Let every thread of the block reach the barrier: put the work under the condition, not the barrier or a "
          "return before it.",
          barrier_where);
  barrier_result = barrier_sum;
  barrier_sum = arrived = 0;
  for (int i = 0; i < thread_count; ++i)
    if (threads[i].at_barrier) {
      threads[i].at_barrier = false;
      if (&threads[i] != current) make_ready(threads[i]);
    }
  checks::after_barrier();
}

void arrive(Where where) {
  if (arrived == 0) {
    barrier_where = where;
  } else if (where.line != barrier_where.line || std::strcmp(where.file, barrier_where.file) != 0) {
    found("barrier",
          text("thread %d waits at the __syncthreads() in {0} while others of its block wait at the one in {1}",
               current->id),
          "A barrier under a condition must be reached by all threads of the block or by none: move it out of the if.",
          where, barrier_where);
  }
  if (interrupted) stop(where);
  current->at_barrier = true;
  current->where = where;
  if (++arrived == alive)
    release_barrier();
  else
    wait();
}

// ----------------------------------------------------------------------------------------------------- warp operations

// If all lanes of `mask` that have not returned wait with it, does their operation and returns them, or else 0.
uint32_t met(int w, uint32_t mask) {
  Warp& warp = warps[w];
  const uint32_t needed = mask & ~warp.returned;
  if ((warp.waiting & needed) != needed) return 0;
  const Operation* operation = warp.operation;
  if (warp.mixed) {
    const Thread& first = threads[w * WARP + __builtin_ctz(needed)];
    operation = first.waits_for;
    for (uint32_t rest = needed; rest != 0; rest &= rest - 1) {
      const Thread& t = threads[w * WARP + __builtin_ctz(rest)];
      if (t.mask != mask) return 0;
      if (t.waits_for == operation) continue;
      found("warp",
            text("lanes of warp %d do different things under the mask 0x%08x: %s in {0}, %s in {1}", w, mask,
                 t.waits_for->name, operation->name),
            "All lanes that a mask names must call the same function together; move it out of the if.", t.where,
            first.where);
      end_launch();
    }
  }
  if (operation->whole && needed != ~0u) {
    found(
        "warp",
        text("%s in {0} needs all 32 lanes of warp %d, but lanes of the mask 0x%08x are not there", operation->name, w,
             ~needed),
        "Tensor-core instructions belong to the whole warp: no lane may have returned, and a block needs a multiple of "
        "32 threads.",
        threads[w * WARP + __builtin_ctz(needed)].where);
    end_launch();
  }
  warp.waiting &= ~needed;
  if (launched->checked && (needed | warp.returned) == ~0u) counters::flush(w);
  operation->meet(warp.args, needed);
  return needed;
}

void report_deadlock_of(const Thread& t) {
  const Warp& warp = warps[t.id / WARP];
  uint32_t missing = t.mask & ~warp.returned & ~warp.waiting;
  int first = t.id / WARP * WARP;
  for (uint32_t rest = warp.waiting & t.mask; rest != 0; rest &= rest - 1) {
    const Thread& other = threads[first + __builtin_ctz(rest)];
    if (other.mask == t.mask) continue;
    found(
        "warp",
        text("thread %d waits at %s in {0} with the mask 0x%08x, and thread %d at %s in {1} with the mask 0x%08x: each "
             "waits for lanes that the other mask names differently, so neither can go on",
             t.id, t.waits_for->name, t.mask, other.id, other.waits_for->name, other.mask),
        "All lanes that a mask names must pass that same mask. Outside of any condition it is 0xffffffff.", t.where,
        other.where);
    return;
  }
  const Thread& absent = threads[first + (missing != 0 ? __builtin_ctz(missing) : 0)];
  found(
      "warp",
      text("thread %d waits at %s in {0} for the lanes of the mask 0x%08x, but those of 0x%08x do not come: they wait "
           "at the barrier in {1}",
           t.id, t.waits_for->name, t.mask, missing),
      "Every lane that the mask names must reach the call: move it out of the if, or name in the mask only the lanes "
      "that are there.",
      t.where, absent.where);
}

void report_deadlock() {
  for (int i = 0; i < thread_count; ++i)
    if (warps[i / WARP].waiting >> i % WARP & 1) {
      report_deadlock_of(threads[i]);
      break;
    }
  end_launch();
}

// ---------------------------------------------------------------------------------------------------- a thread's life

// After the current thread has returned: whom that sets free, and who runs next (null: the block is done).
Thread* after_return() {
  Thread& t = *current;
  int w = t.id / WARP;
  Warp& warp = warps[w];
  finish_copies(t);
  t.returned = true;
  warp.returned |= 1u << t.id % WARP;
  --alive;
  for (uint32_t rest = warp.waiting; rest != 0; rest &= rest - 1) {
    const Thread& waiting = threads[w * WARP + __builtin_ctz(rest)];
    if (!(waiting.mask >> (t.id % WARP) & 1)) continue;
    uint32_t freed = met(w, waiting.mask);
    if (freed == 0) continue;
    make_ready(w, freed);
    break;
  }
  if (launched->checked && warp.returned == ~0u) counters::flush(w);
  if (alive == 0) return nullptr;
  if (arrived == alive) release_barrier();
  Thread* next = take_ready(w);
  if (next == nullptr) report_deadlock();
  return next;
}

// What a fiber does all its life: it runs a thread to its end, and then another one.
void fiber_main() {
  for (;;) {
    try {
      launched->run(launched->call);
    } catch (...) {
      found("trap", text("thread %d throws an exception in {0}, which a GPU does not have", current->id), "",
            thrown_at != nullptr ? Place(thrown_at) : Place(launched->where));
      end_launch();
    }
    Thread* next = after_return();
    Fiber* other = next == nullptr ? fiber_of_caller() : next->fiber;
    if (next != nullptr) become(next);
    if (other != nullptr) {
      idle_fibers.push_back(running);
      switch_to(other);
    }
  }
}

// The order of `n` turns: at[position], and its inverse.
void draw_order(int n, int* at, int* position, std::mt19937& random) {
  std::iota(at, at + n, 0);
  if (options.warp_order == REVERSED) std::reverse(at, at + n);
  if (options.warp_order == SHUFFLED) std::shuffle(at, at + n, random);
  for (int i = 0; i < n; ++i) position[at[i]] = i;
}

void run_block(std::mt19937& random) {
  int warp_count = (thread_count + WARP - 1) / WARP;
  draw_order(warp_count, warp_at, warp_position, random);
  ready_warps = warp_count == 32 ? ~0u : (1u << warp_count) - 1;
  for (int w = 0; w < warp_count; ++w) {
    Warp& warp = warps[w];
    int lanes = std::min(WARP, thread_count - w * WARP);
    draw_order(lanes, warp.lane_at, warp.position_of, random);
    warp.ready = lanes == WARP ? ~0u : (1u << lanes) - 1;
    warp.returned = ~warp.ready;
    warp.waiting = warp.paused = 0;
  }
  for (int i = 0; i < thread_count; ++i) {
    Thread& t = threads[i];
    t.fiber = nullptr;
    t.returned = t.at_barrier = false;
    t.copies.clear();
    t.groups.clear();
  }
  alive = thread_count;
  arrived = barrier_sum = 0;
  std::memset(dynamic, 0xff, launched->shared_bytes);  // NaN, whatever the type
  checks::before_block();

  running = fiber_of_caller();
  become(take_ready(warp_at[0]));
  switch_to(take_fiber());
  current = nullptr;
}

// Null if the launch keeps the rules of the GPU, or else which it breaks.
const char* rule_broken(const Launch& l) {
  const int capability = options.capability;
  const uint64_t per_block = uint64_t{l.block.x} * l.block.y * l.block.z;
  if (per_block == 0 || uint64_t{l.grid.x} * l.grid.y * l.grid.z == 0)
    return text("the grid is (%u, %u, %u) and the block (%u, %u, %u): every number must be at least 1", l.grid.x,
                l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z);
  if (per_block > MAX_THREADS || l.block.z > 64)
    return text("a block of (%u, %u, %u) has %llu threads; a block has at most 1024, and at most 64 along z", l.block.x,
                l.block.y, l.block.z, static_cast<unsigned long long>(per_block));
  if (l.grid.x > INT32_MAX || l.grid.y > 65535 || l.grid.z > 65535)
    return text("the grid is (%u, %u, %u); y and z can be at most 65535", l.grid.x, l.grid.y, l.grid.z);
  if (l.shared_bytes > shared_limit())
    return text("%zu bytes of dynamic shared memory; a block has at most %d KiB on compute capability %d.%d",
                l.shared_bytes, static_cast<int>(shared_limit() >> 10), capability / 10, capability % 10);
  if (l.shared_bytes > MAX_STATIC_SHARED && l.shared_bytes > dynamic_shared_allowed())
    return text(
        "%zu bytes of dynamic shared memory; above 48 KiB a kernel has to ask first, with "
        "cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)",
        l.shared_bytes);
  return nullptr;
}

// Once: a launcher whose kernel was stopped may have to be stopped itself.
void say_stopped(const char* where, Place here) {
  const Interruption why = interrupted;
  interrupted = SAID;
  if (why == CTRL_C) found("interrupted", text("stopped by Ctrl-C, %s", where), "", here);
  if (why != TIME_LIMIT) return;
  found("timeout", text("stopped after %g seconds, %s", options.timeout / 1000.0, where),
        current == nullptr
            ? ""
            : "Does the loop there end? Threads take turns: one that waits in a loop for what others write, or for a "
              "lock that another holds, waits for ever here, and may on a GPU. Barriers are the places to wait at.",
        here);
}

std::mutex one_launch;

}  // namespace

size_t shared_limit() {
  switch (options.capability) {
    case 75:
      return 64 << 10;
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
      return 227 << 10;
    default:
      return 99 << 10;
  }
}

void run(const Launch& l) {
  std::lock_guard<std::mutex> lock(one_launch);
  if (interrupted) return;
  if (const char* rule = rule_broken(l)) {
    launched = &l;
    found("launch", text("not launched in {0}: %s", rule),
          "Check the numbers between <<< and >>>, and cudaGetLastError() after the launch.", l.where);
    launched = nullptr;
    set_last_error(cudaErrorInvalidConfiguration);
    return;
  }
  launched = &l;
  blockDim = l.block;
  gridDim = l.grid;
  thread_count = static_cast<int>(l.block.x * l.block.y * l.block.z);
  for (int i = 0; i < thread_count; ++i) {
    unsigned u = static_cast<unsigned>(i);
    threads[i].id = i;
    threads[i].index = {u % l.block.x, u / l.block.x % l.block.y, u / l.block.x / l.block.y};
  }
  ended_early = false;
  checks::before_launch();

  std::mt19937 random(static_cast<unsigned>(options.seed));
  const int64_t blocks = int64_t{l.grid.x} * l.grid.y * l.grid.z;
  std::vector<int64_t> order;
  if (options.block_order == SHUFFLED) {
    order.resize(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
  }
  for (int64_t i = 0; i < blocks && !ended_early && !interrupted; ++i) {
    block_number = options.block_order == REVERSED   ? blocks - 1 - i
                   : options.block_order == SHUFFLED ? order[static_cast<size_t>(i)]
                                                     : i;
    blockIdx = {static_cast<unsigned>(block_number % l.grid.x),
                static_cast<unsigned>(block_number / l.grid.x % l.grid.y),
                static_cast<unsigned>(block_number / l.grid.x / l.grid.y)};
    run_block(random);
  }
  checks::after_launch(ended_early || interrupted);
  if (interrupted && !ended_early) say_stopped("between two blocks of the kernel launched in {0}", l.where);
  if (ended_early) {
    set_last_error(cudaErrorLaunchFailure);
    idle_fibers = all_fibers;
    for (Fiber* fiber : all_fibers) restart(fiber);
  }
  launched = nullptr;
}

void end_launch() {
  ended_early = true;
  switch_to(fiber_of_caller());
  std::abort();  // nobody switches back
}

void stop(Place here) {
  say_stopped(text("when thread %d was in {0}", current->id), here);
  end_launch();
}

void stop_launcher(Place here) {
  const bool known = here.code != nullptr;
  say_stopped(known ? "when the launcher, not a kernel, was in {0}" : "in the launcher, not in a kernel", here);
  leave_launcher();
}

void launch_bounds(unsigned threads, Where where) {
  if (static_cast<unsigned>(thread_count) <= threads) return;
  current = nullptr;  // as if none had begun
  found(
      "launch",
      text("not launched in {0}: a block of (%u, %u, %u) has %d threads, and __launch_bounds__ in {1} promises at most "
           "%u",
           blockDim.x, blockDim.y, blockDim.z, thread_count, threads),
      "Launch smaller blocks, or promise more: the compiler gives each thread registers for as many as are promised.",
      launched->where, where);
  end_launch();
}

void trap(const char* what, Where where) {
  found("trap", text("%s in {0} by thread %d", what, current->id), "", where);
  end_launch();
}

void barrier(Where where) {
  if (!skipped("barrier", where)) arrive(where);
}

int barrier_reduce(int predicate, int operation, Where where) {
  barrier_sum += predicate != 0;
  arrive(where);
  return operation == 0 ? barrier_result : operation == 1 ? barrier_result == alive : barrier_result > 0;
}

void meet(const Operation& operation, uint32_t mask, void* args, Where where) {
  Thread& t = *current;
  int w = t.id / WARP, l = t.id % WARP;
  Warp& warp = warps[w];
  if (!(mask >> l & 1)) {
    found(
        "warp",
        text("thread %d (lane %d) calls %s in {0} with the mask 0x%08x, which does not name it", t.id, l,
             operation.name, mask),
        "A mask names the lanes that make the call, the caller among them. Outside of any condition it is 0xffffffff.",
        where, where);  // a mistake of its own beside what the others do wrong in this line
    end_launch();
  }
  if (interrupted) stop(where);
  t.waits_for = &operation;
  t.mask = mask;
  t.where = where;
  warp.args[l] = args;
  warp.mixed = warp.waiting != 0 && (warp.mixed || warp.operation != &operation || warp.mask != mask);
  warp.operation = &operation;
  warp.mask = mask;
  warp.waiting |= 1u << l;
  if (uint32_t together = met(w, mask))
    make_ready(w, together & ~(1u << l));
  else
    wait();
}

void pause() {
  Warp& warp = warps[current->id / WARP];
  warp.paused |= 1u << warp.position_of[current->id % WARP];
  ready_warps |= 1u << warp_position[current->id / WARP];
  wait();
}

uint32_t active_mask() { return ~warps[current->id / WARP].returned; }
void* dynamic_shared() { return dynamic; }

}  // namespace emulator
