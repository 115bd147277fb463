// Memory that calls reuse.
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(_WIN32)
#include <malloc.h>
#endif

#include "team.h"

namespace jaxrnn {
namespace {

using Block = Memory::Block;

Block allocate(size_t size) {
#if defined(_WIN32)
  void* at = _aligned_malloc(size, 64);
#else
  void* at = std::aligned_alloc(64, size);
#endif
  if (!at) throw std::bad_alloc();
  return {at, size};
}

void release(const Block& block) {
#if defined(_WIN32)
  _aligned_free(block.at);
#else
  std::free(block.at);
#endif
}

// Blocks that no call uses, up to a bound; the oldest make room for new ones, so that calls whose
// shapes do not return leave none to the others.
class Kept {
 public:
  Kept() { blocks_.reserve(kMostBlocks); }  // so that `give` does not throw

  // A block of at least `size` bytes, not much larger, or an empty one.
  Block take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto at = blocks_.begin(); at != blocks_.end(); ++at)
      if (at->size >= size && at->size / 2 <= size &&
          (best == blocks_.end() || at->size < best->size))
        best = at;
    if (best == blocks_.end()) return {};
    return remove(best);
  }

  bool give(const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block.size > kMostBytes) return false;
    while (blocks_.size() >= kMostBlocks || total_ + block.size > kMostBytes)
      release(remove(blocks_.begin()));
    blocks_.push_back(block);
    total_ += block.size;
    return true;
  }

 private:
  Block remove(std::vector<Block>::iterator at) {
    const Block block = *at;
    blocks_.erase(at);
    total_ -= block.size;
    return block;
  }

  static constexpr size_t kMostBlocks = 64, kMostBytes = size_t(32) << 20;
  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t total_ = 0;
};

// Never destroyed: a thread may still run a call when the process exits.
Kept& kept() {
  static Kept* const all = new Kept;
  return *all;
}

constexpr size_t kSmall = 32 << 10;  // malloc keeps smaller blocks itself

}  // namespace

Memory::Memory(int64_t bytes) {
  const size_t size = (size_t(bytes) + 63) / 64 * 64 + 64;
  if (size > kSmall) block_ = kept().take(size);
  if (!block_.at) block_ = allocate(size);
}

Memory::~Memory() {
  if (block_.at && (block_.size <= kSmall || !kept().give(block_))) release(block_);
}

}  // namespace jaxrnn
