// JSON, written from left to right.
#pragma once
#include <string>

#include "runtime.h"

namespace emulator {

struct Json {
  std::string out;
  void open(char bracket) { out += bracket; }
  void close(char bracket) { out += bracket; }
  void item() {
    if (out.back() != '[') out += ", ";
  }
  void key(const char* name) {
    if (out.back() != '{') out += ", ";
    string(name);
    out += ": ";
  }
  void string(const std::string& s) {
    out += '"';
    for (char c : s) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
    out += '"';
  }
  void number(int64_t n) { out += std::to_string(n); }
  void field(const char* name, const std::string& s) { key(name), string(s); }
  void field(const char* name, int64_t n) { key(name), number(n); }
  void index(const char* name, uint3 v) {
    key(name);
    open('[');
    for (unsigned n : {v.x, v.y, v.z}) item(), number(n);
    close(']');
  }
};

void write_place(Json& json, const Place& place);

}  // namespace emulator
