// What Python sets and reads, through a few C functions: options in, findings and counts out, as JSON.
#include <dlfcn.h>

#include <cstdarg>
#include <string>

#include "checks.h"
#include "json.h"

namespace emulator {

Options options;

namespace {

struct Finding {
  std::string kind, words, mend, kernel;
  Place here, other;
  int thread;
  uint3 block, index;
  int64_t times;
  bool across_warps;
};
std::vector<Finding> findings;

struct Skip {
  std::string file;
  int line;
};
std::vector<Skip> skips;

bool same(const Place& a, const Place& b) {
  return a.code == b.code && a.line == b.line &&
         (a.file == b.file || (a.file != nullptr && b.file != nullptr && std::strcmp(a.file, b.file) == 0));
}

// Whoever reads before others write, for want of a barrier, finds nothing there yet: the race says it better.
bool only_a_race(const Finding& f) {
  if (f.kind != "uninitialised") return false;
  for (const Finding& race : findings)
    if (race.kind == "race" && same(race.other, f.here)) return true;
  return false;
}

void write_finding(Json& json, const Finding& f) {
  json.open('{');
  json.field("kind", f.kind);
  json.field("kernel", f.kernel);
  json.field("words", f.words);
  json.field("mend", f.mend);
  json.key("places");
  json.open('[');
  json.item(), write_place(json, f.here);
  json.item(), write_place(json, f.other);
  json.close(']');
  if (f.thread < 0) {  // it happened before any thread ran
    json.key("thread"), json.out += "null";
    json.key("block"), json.out += "null";
  } else {
    json.index("thread", f.index);
    json.index("block", f.block);
  }
  json.field("times", f.times);
  json.field("across_warps", f.across_warps);
  json.close('}');
}

}  // namespace

// {file, line}; or {library, offsets}, which Python looks up in the library's line table; or null.
void write_place(Json& json, const Place& place) {
  Dl_info info;
  if (place.file != nullptr) {
    json.open('{');
    json.field("file", place.file);
    json.field("line", place.line);
    json.close('}');
  } else if (place.code != nullptr && dladdr(place.code, &info) != 0) {
    json.open('{');
    json.field("library", info.dli_fname);
    json.key("offsets"), json.open('[');
    json.item(), json.number(static_cast<const char*>(place.code) - static_cast<const char*>(info.dli_fbase));
    for (const void* caller : place.callers)
      if (caller != nullptr)
        json.item(), json.number(static_cast<const char*>(caller) - static_cast<const char*>(info.dli_fbase));
    json.close(']');
    json.close('}');
  } else {
    json.out += "null";
  }
}

// The end of a file's name is enough: kernels know their whole path.
bool skipped(const char* kind, Where where) {
  bool left_out = false;
  for (const Skip& skip : skips) {
    size_t length = std::strlen(where.file), n = skip.file.size();
    left_out |= where.line == skip.line && length >= n && where.file + length - n == skip.file;
  }
  if (launched->checked) counters::passed(kind, where, left_out);
  return left_out;
}

const char* text(const char* format, ...) {
  static char buffers[8][1024];
  static int next = 0;
  char* buffer = buffers[next++ % 8];
  va_list args;
  va_start(args, format);
  std::vsnprintf(buffer, sizeof buffers[0], format, args);
  va_end(args);
  return buffer;
}

// One finding a kind and pair of places: what a thousand threads do wrong in one line is one mistake.
bool found_again(const char* kind, Place here, Place other) {
  for (Finding& f : findings)
    if (f.kind == kind && same(f.here, here) && same(f.other, other)) return ++f.times;
  return false;
}

void found(const char* kind, const char* words, const char* mend, Place here, Place other, const Thread* who) {
  if (found_again(kind, here, other)) return;
  findings.push_back({kind, words, mend, launched != nullptr ? launched->kernel : launcher, here, other,
                      who != nullptr ? who->id : -1, blockIdx, who != nullptr ? who->index : threadIdx, 1, false});
}

void across_warps(Place here, Place other) {
  for (Finding& f : findings)
    if (f.kind == "race" && same(f.here, here) && same(f.other, other)) f.across_warps = true;
}

}  // namespace emulator

// ----------------------------------------------------------------------------------------------------- the C interface

using namespace emulator;

extern "C" {

// Returns 0, or -1 if there is no such option.
int emulator_set(const char* name, int64_t value) {
  const std::pair<const char*, int*> known[] = {
      {"warp_order", &options.warp_order},     {"block_order", &options.block_order},     {"seed", &options.seed},
      {"copies_early", &options.copies_early}, {"interruptible", &options.interruptible}, {"trace", &options.trace},
      {"timeout", &options.timeout},           {"capability", &options.capability}};
  for (auto [option, target] : known)
    if (std::strcmp(option, name) == 0) {
      *target = static_cast<int>(value);
      return 0;
    }
  return -1;
}

// From now on the barrier or wait in this line is left out; a null file: none is.
void emulator_skip(const char* file, int line) {
  if (file == nullptr)
    skips.clear();
  else
    skips.push_back({file, line});
}

// An array that the next launches may touch, of elements of so many bytes. When all are known, emulator_guarded() gives
// the address to pass instead of an array's own, and emulator_copy_back() brings back what was written.
void emulator_array(const char* name, void* address, int64_t bytes, int64_t element, int writable) {
  checks::add_array(name, address, static_cast<size_t>(bytes), static_cast<size_t>(element), writable != 0);
}
void* emulator_guarded(void* address) { return checks::guarded(address); }
void emulator_copy_back() { checks::copy_back(); }

// Forgets arrays, findings and counts.
void emulator_clear() {
  interrupted = NONE;
  thrown_at = nullptr;
  copying = {nullptr, 0};
  findings.clear();
  checks::forget_arrays();
  counters::clear();
}

// Everything known, as JSON; the text lives until the next call.
const char* emulator_report() {
  static Json json;
  json.out.clear();
  json.open('{');
  json.key("findings");
  json.open('[');
  for (const Finding& f : findings)
    if (!only_a_race(f)) json.item(), write_finding(json, f);
  json.close(']');
  counters::write(json);
  json.close('}');
  return json.out.c_str();
}
}
