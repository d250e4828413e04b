// What Python sets and reads, through a few C functions: options in, findings and counts out, as JSON.
#include <dlfcn.h>

#include <cstdarg>
#include <string>

#include "checks.h"
#include "runtime.h"

namespace emulator {

Options options;

namespace {

struct Finding {
  std::string kind, words, mend, kernel;
  Place here, other;
  int thread;
  uint3 block, index;
  int64_t times;
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

}  // namespace

// Some file names end in what `file` says: kernels know their path, people the name.
bool skipped(Where where) {
  for (const Skip& skip : skips) {
    size_t length = std::strlen(where.file);
    if (where.line == skip.line && length >= skip.file.size() && where.file + length - skip.file.size() == skip.file)
      return true;
  }
  return false;
}

const char* text(const char* format, ...) {
  static char buffers[4][1024];
  static int next = 0;
  char* buffer = buffers[next++ % 4];
  va_list args;
  va_start(args, format);
  std::vsnprintf(buffer, sizeof buffers[0], format, args);
  va_end(args);
  return buffer;
}

// One finding a kind and pair of places: what a thousand threads do wrong in one line is one mistake.
void found(const char* kind, const char* words, const char* mend, Place here, Place other) {
  for (Finding& f : findings)
    if (f.kind == kind && same(f.here, here) && same(f.other, other)) {
      ++f.times;
      return;
    }
  findings.push_back({kind, words, mend, launched->kernel, here, other, current != nullptr ? current->id : -1, blockIdx,
                      threadIdx, 1});
}

}  // namespace emulator

using namespace emulator;

// ------------------------------------------------------------------------------------------------ the C interface

namespace {

// JSON, written from left to right.
struct Json {
  std::string out;
  void string(const std::string& s) {
    out += '"';
    for (char c : s) {
      if (c == '"' || c == '\\') out += '\\';
      if (static_cast<unsigned char>(c) < 32)
        out += ' ';
      else
        out += c;
    }
    out += '"';
  }
  void number(int64_t n) { out += std::to_string(n); }
  void key(const char* name) {
    if (out.back() != '{') out += ", ";
    string(name);
    out += ": ";
  }
  void item() {
    if (out.back() != '[') out += ", ";
  }
};

// A place is {file, line}, or {library, offset} for Python to look up in the library's line table; or null.
void write_place(Json& json, const Place& place) {
  Dl_info info;
  if (place.file != nullptr) {
    json.out += "{";
    json.key("file");
    json.string(place.file);
    json.key("line");
    json.number(place.line);
    json.out += "}";
  } else if (place.code != nullptr && dladdr(place.code, &info) != 0) {
    json.out += "{";
    json.key("library");
    json.string(info.dli_fname);
    json.key("offset");  // of the call itself: one byte before where it returns to
    json.number(static_cast<const char*>(place.code) - static_cast<const char*>(info.dli_fbase) - 1);
    json.out += "}";
  } else {
    json.out += "null";
  }
}

void write_index(Json& json, const uint3& v) {
  json.out += "[";
  for (unsigned n : {v.x, v.y, v.z}) json.item(), json.number(n);
  json.out += "]";
}

void write_finding(Json& json, const Finding& f) {
  json.out += "{";
  for (auto [name, value] : {std::pair("kind", &f.kind), std::pair("kernel", &f.kernel), std::pair("words", &f.words),
                             std::pair("mend", &f.mend)}) {
    json.key(name);
    json.string(*value);
  }
  json.key("places");
  json.out += "[";
  json.item(), write_place(json, f.here);
  json.item(), write_place(json, f.other);
  json.out += "]";
  json.key("thread");
  f.thread < 0 ? static_cast<void>(json.out += "null") : write_index(json, f.index);
  json.key("block");
  f.thread < 0 ? static_cast<void>(json.out += "null") : write_index(json, f.block);
  json.key("times");
  json.number(f.times);
  json.out += "}";
}

}  // namespace

extern "C" {

// Returns 0, or -1 if there is no such option.
int emulator_set(const char* name, int64_t value) {
  const std::pair<const char*, int*> known[] = {{"warp_order", &options.warp_order},
                                                {"block_order", &options.block_order},
                                                {"seed", &options.seed},
                                                {"copies_early", &options.copies_early},
                                                {"capability", &options.capability}};
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

void emulator_clear() { findings.clear(); }

// Everything known, as JSON; the text lives until the next call.
const char* emulator_report() {
  static Json json;
  json.out = "{";
  json.key("findings");
  json.out += "[";
  for (const Finding& f : findings) json.item(), write_finding(json, f);
  json.out += "]}";
  return json.out.c_str();
}
}
