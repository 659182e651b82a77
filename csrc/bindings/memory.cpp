#include "memory.h"

#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv::bindings {
namespace {

constexpr uintptr_t kHuge = 2 << 20;

}  // namespace

void advise_huge_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto at = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (at + kHuge - 1) & -kHuge, end = (at + bytes) & -kHuge;
  if (bytes >= 2 * kHuge || end - begin == bytes) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

std::shared_ptr<void> new_memory(int64_t bytes, const char* purpose) {
  const uintptr_t unit = static_cast<uintptr_t>(bytes) < kHuge ? 64 : kHuge;
  const size_t size = (static_cast<size_t>(bytes) + unit - 1) / unit * unit;
  void* memory = std::aligned_alloc(unit, size);
  TORCH_CHECK(memory, "fastconv: no memory for ", purpose, " of ", bytes, " bytes");
  if (unit == kHuge) advise_huge_pages(memory, size);
  return {memory, std::free};
}

}  // namespace fastconv::bindings
