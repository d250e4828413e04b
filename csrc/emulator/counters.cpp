// Counts what a kernel's lines do to memory, as a GPU would do it: by whole warps.
//
// The lanes of a warp run one after another here, so what they do is first noted, lane by lane, and counted when all of
// them have come to the same point: the n-th time that a lane passed an instruction belongs to the n-th time of the
// others. Global memory moves in sectors of 32 bytes: a warp's access costs as many as it touches. Shared memory has 32
// banks, 4 bytes wide, and an access takes as many turns as the busiest bank has different words to serve; accesses of
// 8 bytes a lane go by half warps, of 16 bytes by quarters.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "checks.h"
#include "json.h"

// FLOPs of the kernels' own arithmetic, since the library was loaded (minigpt/emulator/flops.py).
extern "C" {
__attribute__((visibility("hidden"))) int64_t emulator_flops = 0;
}

namespace emulator::counters {
namespace {

constexpr const char* words_of[] = {"read", "write", "atomic"};  // of a Kind
constexpr size_t NOTES = 2048;                                   // of one lane, before the others have to catch up

struct Note {
  uint64_t address;
  Code code;
  uint16_t bytes;
  Space space;
  Kind kind;
  bool same_instruction(const Note& n) const { return code == n.code && space == n.space && kind == n.kind; }
};
std::vector<Note> notes[MAX_THREADS];

struct Kernel {
  std::string name;
  uint3 grid, block;
  size_t shared_bytes = 0, static_bytes = 0;  // dynamic, and of __shared__ arrays
  bool cut_short = false;                     // by a fault: the counts are those until then
  int64_t launches = 0, barriers = 0, flops = 0, tensor_flops = 0;
};
std::vector<Kernel> kernels;
Kernel* kernel = nullptr;  // of the launch under way
int64_t flops_before = 0;  // emulator_flops when it began

struct Key {
  const Kernel* kernel;
  Code code;
  Space space;
  Kind kind;
  bool operator<(const Key& k) const {
    return std::tie(kernel, code, space, kind) < std::tie(k.kernel, k.code, k.space, k.kind);
  }
};
struct Line {
  int64_t requests = 0, bytes = 0, sectors = 0, ideal = 0, conflicts = 0, lanes = 0;
  int64_t gaps = 0;  // requests of lanes that lie as their numbers do, with idle ones between
};
std::map<Key, Line> lines;

struct Site {
  const char* kind;
  Where where;
  int64_t times;  // that it was not left out
};
std::vector<Site> sites;

// An instruction of a warp, as it happened, for pictures of who touches what when.
struct Traced {
  const Kernel* kernel;
  uint3 block;
  int warp, step;  // step: how many barriers the block had passed
  Code code;
  Space space;
  Kind kind;
  std::string array;
  int bytes;                                   // of each lane
  std::vector<std::pair<int, int64_t>> lanes;  // their numbers, and where in the array: an offset in bytes
};
std::vector<Traced> trace;
int step = 0;

// How many sectors the lanes touch; `distinct` gets the bytes, each counted once.
int sectors(const Note* const* lane, int n, int64_t& distinct) {
  uint64_t begins[WARP];
  for (int i = 0; i < n; ++i) begins[i] = lane[i]->address;
  std::sort(begins, begins + n);
  const uint64_t bytes = lane[0]->bytes;
  uint64_t end = 0, next_sector = 0;
  int count = 0;
  distinct = 0;
  for (int i = 0; i < n; ++i) {
    uint64_t first = begins[i] / 32, last = (begins[i] + bytes - 1) / 32;
    count += static_cast<int>(last + 1 - std::min(last + 1, std::max(first, next_sector)));
    next_sector = std::max(next_sector, last + 1);
    distinct += static_cast<int64_t>(begins[i] + bytes - std::min(begins[i] + bytes, std::max(begins[i], end)));
    end = std::max(end, begins[i] + bytes);
  }
  return count;
}

// How many turns the banks need for lanes [0, n) beyond the first.
int conflicts(const Note* const* lane, int n) {
  uint64_t words[WARP][WARP];
  int used[WARP] = {}, turns = 1;
  for (int i = 0; i < n; ++i)
    for (uint64_t word = lane[i]->address / 4; word <= (lane[i]->address + lane[i]->bytes - 1) / 4; ++word) {
      uint64_t* bank = words[word % WARP];
      int& in_bank = used[word % WARP];
      if (std::find(bank, bank + in_bank, word) != bank + in_bank) continue;
      if (in_bank < WARP) bank[in_bank++] = word;
      turns = std::max(turns, in_bank);
    }
  return turns - 1;
}

void keep(int warp, const Note* const* lane, const int* numbers, int n) {
  int64_t offset;
  const Note& first = *lane[0];
  Traced t{kernel,      blockIdx,    warp,       step,
           first.code,  first.space, first.kind, checks::array_of(first.address, offset),
           first.bytes, {}};
  for (int i = 0; i < n; ++i)
    if (t.array == checks::array_of(lane[i]->address, offset)) t.lanes.emplace_back(numbers[i], offset);
  trace.push_back(std::move(t));
}

// Do lanes lie side by side but for some that are idle?
bool idle_between(const Note* const* lane, const int* numbers, int n) {
  if (n < 2 || numbers[n - 1] - numbers[0] == n - 1) return false;
  for (int i = 1; i < n; ++i)
    if (lane[i]->address - lane[0]->address != static_cast<uint64_t>(numbers[i] - numbers[0]) * lane[0]->bytes)
      return false;
  return true;
}

// One instruction of a warp: lane[0 .. n) are the notes of the lanes numbered `numbers`.
void count(int warp, const Note* const* lane, const int* numbers, int n) {
  const Note& first = *lane[0];
  if (trace.size() < static_cast<size_t>(options.trace)) keep(warp, lane, numbers, n);
  Line& line = lines[{kernel, first.code, first.space, first.kind}];
  ++line.requests;
  line.lanes += n;
  line.gaps += idle_between(lane, numbers, n);
  for (int i = 0; i < n; ++i) line.bytes += lane[i]->bytes;
  if (first.space == GLOBAL) {
    int64_t distinct;
    line.sectors += sectors(lane, n, distinct);
    line.ideal += (distinct + 31) / 32;
    return;
  }
  const int together = first.bytes <= 4 ? 32 : first.bytes == 8 ? 16 : 8;
  for (int i = 0; i < n;) {
    int begin = i, phase = numbers[i] / together;
    while (i < n && numbers[i] / together == phase) ++i;
    line.conflicts += conflicts(lane + begin, i - begin);
  }
}

void flush_in_step(const std::vector<int>& lanes, int first, size_t length) {
  const Note* lane[WARP];
  for (size_t i = 0; i < length; ++i) {
    int n = 0;
    for (int l : lanes) lane[n++] = &notes[first + l][i];
    count(first / WARP, lane, lanes.data(), n);
  }
}

// The lanes went different ways: the n-th time of each instruction is put together.
void flush_apart(const std::vector<int>& lanes, int first) {
  struct Group {
    const Note* lane[WARP];
    int numbers[WARP], n = 0;
  };
  std::unordered_map<uint64_t, std::vector<Group>> groups;
  for (int l : lanes) {
    std::unordered_map<uint64_t, size_t> times;
    for (const Note& note : notes[first + l]) {
      uint64_t instruction = uint64_t{note.code} << 8 | note.space << 4 | note.kind;
      std::vector<Group>& of_instruction = groups[instruction];
      size_t time = times[instruction]++;
      if (of_instruction.size() == time) of_instruction.emplace_back();
      Group& group = of_instruction[time];
      group.lane[group.n] = &note;
      group.numbers[group.n++] = l;
    }
  }
  for (auto& [instruction, of_instruction] : groups)
    for (Group& group : of_instruction) count(first / WARP, group.lane, group.numbers, group.n);
}

}  // namespace

void before_launch() {
  auto known = std::find_if(kernels.begin(), kernels.end(), [](const Kernel& k) { return k.name == launched->kernel; });
  if (known == kernels.end()) {
    kernels.reserve(256);  // lines point to them
    kernels.push_back({});
    known = kernels.end() - 1;
    known->name = launched->kernel;
  }
  kernel = &*known;
  kernel->grid = {launched->grid.x, launched->grid.y, launched->grid.z};
  kernel->block = {launched->block.x, launched->block.y, launched->block.z};
  kernel->shared_bytes = launched->shared_bytes;
  ++kernel->launches;
  for (auto& of_lane : notes) of_lane.clear();
  flops_before = emulator_flops;
}

void static_shared(size_t bytes) { kernel->static_bytes = std::max(kernel->static_bytes, bytes); }

void after_launch(bool cut_short) {
  flush_all();
  kernel->cut_short |= cut_short;
  kernel->flops += emulator_flops - flops_before;
}

void log(uint64_t address, size_t bytes, Space space, Kind kind, Code code) {
  std::vector<Note>& mine = notes[current->id];
  mine.push_back({address, code, static_cast<uint16_t>(bytes), space, kind});
  if (mine.size() >= NOTES) pause();
}

void flush(int warp) {
  std::vector<int> lanes;
  const int first = warp * WARP;
  for (int l = 0; l < WARP; ++l)
    if (!notes[first + l].empty()) lanes.push_back(l);
  if (lanes.empty()) return;
  const std::vector<Note>& leader = notes[first + lanes[0]];
  bool in_step = std::all_of(lanes.begin(), lanes.end(), [&](int l) {
    return notes[first + l].size() == leader.size() &&
           std::equal(leader.begin(), leader.end(), notes[first + l].begin(),
                      [](const Note& a, const Note& b) { return a.same_instruction(b); });
  });
  if (in_step)
    flush_in_step(lanes, first, leader.size());
  else
    flush_apart(lanes, first);
  for (int l : lanes) notes[first + l].clear();
}

void flush_all() {
  for (int w = 0; w < MAX_WARPS; ++w) flush(w);
}

void before_block() { step = 0; }

void barrier() {
  flush_all();
  ++kernel->barriers;
  ++step;
}

void tensor_flops(int64_t flops) {
  if (kernel != nullptr) kernel->tensor_flops += flops;
}

void passed(const char* kind, Where where, bool left_out) {
  for (Site& site : sites)
    if (site.where.line == where.line && site.where.file == where.file) {
      site.times += !left_out;
      return;
    }
  sites.push_back({kind, where, !left_out});
}

void clear() {
  trace.clear();
  sites.clear();
  kernels.clear();
  lines.clear();
}

void write(Json& json) {
  json.key("kernels");
  json.open('[');
  for (const Kernel& k : kernels) {
    json.item(), json.open('{');
    json.field("name", k.name);
    json.index("grid", k.grid);
    json.index("block", k.block);
    json.field("shared_bytes", static_cast<int64_t>(k.shared_bytes));
    json.field("static_bytes", static_cast<int64_t>(k.static_bytes));
    json.field("cut_short", k.cut_short);
    json.field("launches", k.launches);
    json.field("barriers", k.barriers);
    json.field("flops", k.flops);
    json.field("tensor_flops", k.tensor_flops);
    json.close('}');
  }
  json.close(']');
  json.key("lines");
  json.open('[');
  for (const auto& [key, line] : lines) {
    json.item(), json.open('{');
    json.field("kernel", key.kernel->name);
    json.key("place"), write_place(json, place_of(key.code));
    json.field("space", key.space == GLOBAL ? "global" : "shared");
    json.field("kind", words_of[key.kind]);
    json.field("requests", line.requests);
    json.field("bytes", line.bytes);
    json.field("sectors", line.sectors);
    json.field("ideal", line.ideal);
    json.field("conflicts", line.conflicts);
    json.field("lanes", line.lanes);
    json.field("gaps", line.gaps);
    json.close('}');
  }
  json.close(']');
  json.key("sites");
  json.open('[');
  for (const Site& site : sites) {
    json.item(), json.open('{');
    json.field("kind", site.kind);
    json.key("place"), write_place(json, site.where);
    json.field("times", site.times);
    json.close('}');
  }
  json.close(']');
  json.key("trace");
  json.open('[');
  for (const Traced& t : trace) {
    json.item(), json.open('{');
    json.field("kernel", t.kernel->name);
    json.index("block", t.block);
    json.field("warp", t.warp);
    json.field("step", t.step);
    json.key("place"), write_place(json, place_of(t.code));
    json.field("space", t.space == GLOBAL ? "global" : "shared");
    json.field("array", t.array);
    json.field("kind", words_of[t.kind]);
    json.field("bytes", t.bytes);
    json.key("lanes"), json.open('[');
    for (auto [number, offset] : t.lanes) json.item(), json.number(number);
    json.close(']');
    json.key("offsets"), json.open('[');
    for (auto [number, offset] : t.lanes) json.item(), json.number(offset);
    json.close(']');
    json.close('}');
  }
  json.close(']');
}

}  // namespace emulator::counters
