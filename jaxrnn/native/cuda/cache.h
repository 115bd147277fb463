// Compiled kernels on disk, safe against several processes at once. A folder that cannot be written
// costs the next process a compilation, and nothing else.
#pragma once

#include <string>

namespace jaxrnn::cuda {

// Empty if there is none for this key, or only a damaged one.
std::string read_cached(const std::string& key);
void write_cached(const std::string& key, const std::string& code);

}  // namespace jaxrnn::cuda
