#include "compiler.h"

#include <dlfcn.h>

#include <mutex>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "cache.h"

namespace jaxrnn::cuda {
namespace {

struct Header {
  const char* name;
  const char* text;
};
const Header headers[] = {
#include "sources.inc"
};
constexpr int header_count = sizeof headers / sizeof headers[0];

typedef void* Program;

struct Nvrtc {
  int (*nvrtcVersion)(int*, int*);
  const char* (*nvrtcGetErrorString)(int);
  int (*nvrtcCreateProgram)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*nvrtcDestroyProgram)(Program*);
  int (*nvrtcCompileProgram)(Program, int, const char* const*);
  int (*nvrtcGetProgramLogSize)(Program, size_t*);
  int (*nvrtcGetProgramLog)(Program, char*);
  int (*nvrtcGetCUBINSize)(Program, size_t*);
  int (*nvrtcGetCUBIN)(Program, char*);
  int version = 0;  // 12.4: 12040

  bool open(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return false;
    bool all = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      all = all && function != nullptr;
    };
#define FIND(name) find(name, #name)
    FIND(nvrtcVersion);
    FIND(nvrtcGetErrorString);
    FIND(nvrtcCreateProgram);
    FIND(nvrtcDestroyProgram);
    FIND(nvrtcCompileProgram);
    FIND(nvrtcGetProgramLogSize);
    FIND(nvrtcGetProgramLog);
    FIND(nvrtcGetCUBINSize);
    FIND(nvrtcGetCUBIN);
#undef FIND
    int major = 0, minor = 0;
    if (!all || nvrtcVersion(&major, &minor) != 0) return false;
    version = major * 1000 + minor * 10;
    return true;
  }
};

std::mutex nvrtc_mutex;
std::string nvrtc_paths;

// The first that is neither older than 11.8 (no compute capability 9.0) nor of a newer major version
// than the driver, which would not load its code.
const Nvrtc& nvrtc(int most_version) {
  static Nvrtc opened;
  const std::lock_guard<std::mutex> lock(nvrtc_mutex);
  if (opened.version != 0) return opened;
  std::istringstream paths(nvrtc_paths + ":libnvrtc.so.13:libnvrtc.so.12:libnvrtc.so");
  std::string passed_over;
  for (std::string path; std::getline(paths, path, ':');) {
    Nvrtc found;
    if (path.empty() || !found.open(path)) continue;
    if (found.version >= 11080 && (most_version == 0 || found.version / 1000 <= most_version / 1000)) {
      opened = found;
      return opened;
    }
    passed_over += " " + path + " is of version " + std::to_string(found.version / 1000) + "." +
                   std::to_string(found.version % 1000 / 10) + ".";
  }
  throw std::runtime_error(
      "no NVRTC (CUDA's run-time compiler) fits the driver; `pip install 'jax[cuda12]'` or `'jax[cuda13]'` brings one." +
      passed_over);
}

std::vector<std::string> options_for(const std::string& arch) {
  return {"--gpu-architecture=" + arch, "--std=c++17", "--ptxas-options=-v"};
}

std::string program(const std::string& instance, const Form& form) {
  return "#include \"alone.cuh\"\nusing namespace jaxrnn::cuda;\n"
         "extern \"C\" __global__ void __launch_bounds__(" +
         std::to_string(form.threads()) + ", " + std::to_string(form.ctas_per_sm) +
         ")\njaxrnn_kernel(const __grid_constant__ Arguments p) { " + instance + "(p); }\n";
}

// "    16 bytes stack frame, 12 bytes spill stores, ..."
int stack_in(const std::string& log) {
  const size_t at = log.find(" bytes stack frame");
  if (at == std::string::npos) return 0;
  const size_t begin = log.find_last_not_of("0123456789", at - 1) + 1;
  return std::stoi(log.substr(begin, at - begin));
}

Compiled compile(const Nvrtc& n, const std::string& source, const std::string& arch) {
  std::vector<const char*> names, texts, words;
  for (const Header& header : headers) {
    names.push_back(header.name);
    texts.push_back(header.text);
  }
  const std::vector<std::string> all = options_for(arch);
  for (const std::string& option : all) words.push_back(option.c_str());

  Program handle = nullptr;
  int rc = n.nvrtcCreateProgram(&handle, source.c_str(), "jaxrnn.cu", header_count, texts.data(), names.data());
  if (rc != 0) throw std::runtime_error(std::string("NVRTC failed: ") + n.nvrtcGetErrorString(rc));
  rc = n.nvrtcCompileProgram(handle, int(words.size()), words.data());
  std::string log;
  size_t size = 0;
  if (n.nvrtcGetProgramLogSize(handle, &size) == 0 && size > 1) {
    log.resize(size);
    n.nvrtcGetProgramLog(handle, log.data());
    log.resize(size - 1);
  }
  Compiled result = {"", stack_in(log)};
  if (rc == 0) rc = n.nvrtcGetCUBINSize(handle, &size);
  if (rc == 0) {
    result.code.resize(size);
    rc = n.nvrtcGetCUBIN(handle, result.code.data());
  }
  n.nvrtcDestroyProgram(&handle);
  if (rc != 0)
    throw std::runtime_error("NVRTC " + std::to_string(n.version / 1000) + "." + std::to_string(n.version % 1000 / 10) +
                             " cannot compile for " + arch + " (" + n.nvrtcGetErrorString(rc) + "). " + log);
  return result;
}

// From the cache, which keeps the stack in front of the code.
Compiled compile_once(const Nvrtc& n, const std::string& source, const std::string& arch, int driver_version) {
  std::string key =
      source + " nvrtc " + std::to_string(n.version) + " driver " + std::to_string(driver_version);
  for (const std::string& option : options_for(arch)) key += option;
  for (const Header& header : headers) key += header.text;
  const std::string cached = read_cached(key);
  if (const size_t end = cached.find('\n'); end != std::string::npos)
    return {cached.substr(end + 1), std::stoi(cached.substr(0, end))};
  const Compiled compiled = compile(n, source, arch);
  write_cached(key, std::to_string(compiled.stack) + "\n" + compiled.code);
  return compiled;
}

}  // namespace

void set_nvrtc(const std::string& paths) {
  const std::lock_guard<std::mutex> lock(nvrtc_mutex);
  nvrtc_paths = paths;
}

Compiled compile_form(const Problem& problem, Form* form, const std::string& arch, int most_version) {
  const Nvrtc& n = nvrtc(most_version);
  while (true) {
    const Compiled compiled = compile_once(n, program(instance(problem, *form), *form), arch, most_version);
    if (compiled.stack == 0 || !shrink(problem, form)) return compiled;
  }
}

}  // namespace jaxrnn::cuda
