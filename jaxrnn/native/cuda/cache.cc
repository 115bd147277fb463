#include "cache.h"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

namespace jaxrnn::cuda {
namespace {

namespace fs = std::filesystem;

// FNV-1a.
uint64_t hash(const std::string& text, uint64_t seed) {
  uint64_t h = 0xcbf29ce484222325u ^ seed;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
  return h;
}

std::string hex(uint64_t n) {
  static const char digits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (int i = 15; i >= 0; i--, n >>= 4) text[size_t(i)] = digits[n & 15];
  return text;
}

fs::path folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != 0) return fs::path(cache) / "jaxrnn";
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != 0 ? fs::path(home) / ".cache" / "jaxrnn" : fs::path();
}

fs::path path_of(const std::string& key) {
  const fs::path where = folder();
  return where.empty() ? where : where / (hex(hash(key, 0)) + hex(hash(key, 0x9e3779b97f4a7c15u)) + ".cubin");
}

// Before the code: its own hash, so that a file that a full disk cut short is not taken.
constexpr size_t header_size = 16;

}  // namespace

std::string read_cached(const std::string& key) {
  std::ifstream file(path_of(key), std::ios::binary);
  if (!file) return {};
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (all.size() <= header_size) return {};
  const std::string code = all.substr(header_size);
  return all.compare(0, header_size, hex(hash(code, 0))) == 0 ? code : std::string();
}

void write_cached(const std::string& key, const std::string& code) {
  const fs::path path = path_of(key);
  if (path.empty()) return;
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  // Written beside it and renamed: a reader sees a whole file or none.
  fs::path part = path;
  part += "." + std::to_string(getpid()) + "." + hex(reinterpret_cast<uintptr_t>(&part));
  {
    std::ofstream file(part, std::ios::binary);
    file << hex(hash(code, 0)) << code;
    file.close();
    if (!file) {
      fs::remove(part, ignored);
      return;
    }
  }
  fs::rename(part, path, ignored);
  if (ignored) fs::remove(part, ignored);
}

}  // namespace jaxrnn::cuda
