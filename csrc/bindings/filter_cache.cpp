#include "filter_cache.h"

#include <c10/core/StorageImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "../core/div_up.h"
#include "../cpu/content_hash.h"
#include "memory.h"

namespace fastconv::bindings {
namespace {

using cpu::Hash128;

constexpr int64_t kDefaultLimit = int64_t{1} << 30;  // VGG-16's filters for F(4x4,3x3) take 236 MB
// Below this, transforming costs about as much as recognising.
constexpr int64_t kWorthKeeping = 16 << 10;

int64_t limit_from_environment() {
  const char* text = std::getenv("FASTCONV_FILTER_CACHE_MB");
  if (!text || !*text) return kDefaultLimit;
  char* end = nullptr;
  const long long megabytes = std::strtoll(text, &end, 10);
  TORCH_CHECK(*end == 0 && megabytes >= 0 && megabytes < (1LL << 40),
              "fastconv: FASTCONV_FILTER_CACHE_MB must be a whole number of megabytes, but is '", text, "'");
  return megabytes << 20;
}

// Where a weight lies and how a row wants it. The contents are compared by hash, so an address used again is harmless.
struct Key {
  const void* address;
  const ConvRow* row;
  int64_t prepack_key, prepack_bytes;
  Sizes4 sizes;
  Strides4 strides;
  int64_t groups, isa, dtype_and_pass;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const { return static_cast<size_t>(cpu::content_hash(&key, sizeof key).low); }
};
static_assert(std::has_unique_object_representations_v<Key>);

struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage{c10::intrusive_ptr<c10::StorageImpl>()};
  Hash128 hash;
  bool frozen = false;  // the hash was taken while the weight was frozen: it need not be taken again
  std::shared_ptr<const void> memory;
  int64_t bytes = 0;
  std::list<Key>::iterator use;  // position in the order of use
};

// Large weights in pieces, by all threads: one core hashes at 10 to 15 GB/s, which for the 9 MB of a layer of 512
// channels takes as long as its products at 7 x 7. The result does not depend on the number of threads.
Hash128 hash_of(const void* data, int64_t bytes, const Threads& threads) {
  constexpr int64_t kPiece = 256 << 10;
  if (bytes <= kPiece) return cpu::content_hash(data, bytes);
  std::vector<Hash128> pieces(static_cast<size_t>(div_up(bytes, kPiece)));
  parallel_tasks(threads, static_cast<int64_t>(pieces.size()), [&](int, int64_t i) {
    pieces[static_cast<size_t>(i)] =
        cpu::content_hash(static_cast<const char*>(data) + i * kPiece, std::min(kPiece, bytes - i * kPiece));
  });
  return cpu::content_hash(pieces.data(), static_cast<int64_t>(pieces.size() * sizeof(Hash128)));
}

class Cache {
 public:
  static Cache& instance() {
    static Cache* cache = new Cache;  // never destroyed: threads may outlive static destruction
    return *cache;
  }

  std::shared_ptr<const void> find_or_make(const ConvPlan& plan, const ConvOperands& operands,
                                           const at::Tensor& weight, const Execution& exec) {
    if (limit_ == 0) return nullptr;
    const ConvProblem& p = plan.problem;
    const Key key{operands.weight, plan.row, plan.prepack_key, plan.prepack_bytes, p.weight_sizes(), p.weight_strides,
                  p.groups, static_cast<int64_t>(cpu::isa()),
                  static_cast<int64_t>(p.dtype) * 16 + static_cast<int64_t>(p.pass)};
    const bool frozen = is_frozen(weight);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = entries_.find(key);
      if (frozen && found != entries_.end() && found->second.frozen && found->second.memory) return hit(found->second);
    }
    const Hash128 hash = hash_of(operands.weight, weight.numel() * weight.element_size(), exec.threads);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto [found, fresh] = entries_.try_emplace(key);
      Entry& entry = found->second;
      if (fresh) {
        order_.push_front(key);
        entry.use = order_.begin();
      }
      const bool known = !fresh && entry.hash == hash;
      if (known && entry.memory) {
        entry.frozen = frozen;
        return hit(entry);
      }
      ++misses_;
      if (fresh || !known) {
        drop_memory(entry);
        entry.hash = hash;
        entry.frozen = false;
        entry.storage = weight.storage().getWeakStorageImpl();
        if (fresh) drop_orphans();
        if (!frozen) return nullptr;
      }
    }
    return make(key, hash, frozen, plan, operands, exec);
  }

  void freeze(const at::Tensor& weight, bool frozen) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto* storage = weight.storage().unsafeGetStorageImpl();
    if (frozen)
      frozen_.insert_or_assign(storage,
                               weight.storage().getWeakStorageImpl());
    else
      frozen_.erase(storage);
    any_frozen_ = !frozen_.empty();
    for (auto& [key, entry] : entries_)
      if (key.address == weight.const_data_ptr()) entry.frozen = false;
  }

  FilterCacheStatistics statistics() {
    std::lock_guard<std::mutex> lock(mutex_);
    drop_orphans();
    FilterCacheStatistics s{0, bytes_, hits_, misses_, limit_};
    for (const auto& [key, entry] : entries_) s.filters += entry.memory != nullptr;
    return s;
  }

  void set_limit(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink(0);
  }

  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
    order_.clear();
    bytes_ = hits_ = misses_ = 0;
  }

 private:
  std::shared_ptr<const void> hit(Entry& entry) {
    ++hits_;
    order_.splice(order_.begin(), order_, entry.use);
    return entry.memory;
  }

  // Transforms outside the lock: two threads may both do it once, neither waits for the other.
  std::shared_ptr<const void> make(const Key& key, const Hash128& hash, bool frozen, const ConvPlan& plan,
                                   const ConvOperands& operands, const Execution& exec) {
    if (plan.prepack_bytes > limit_) return nullptr;
    const std::shared_ptr<void> memory = new_memory(plan.prepack_bytes, "a transformed filter");
    const Status status = plan.row->prepack(plan, operands, memory.get(), exec);
    TORCH_CHECK(status.ok(), "fastconv: ", plan.row->name, " could not transform a filter: ", status.reason());
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end() || !(found->second.hash == hash)) return memory;
    Entry& entry = found->second;
    drop_memory(entry);
    order_.splice(order_.begin(), order_, entry.use);
    shrink(plan.prepack_bytes);
    entry.memory = memory;
    entry.bytes = plan.prepack_bytes;
    entry.frozen = frozen;
    bytes_ += entry.bytes;
    return memory;
  }

  bool is_frozen(const at::Tensor& weight) {
    if (!any_frozen_) return false;
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = frozen_.find(weight.storage().unsafeGetStorageImpl());
    return found != frozen_.end() && !found->second.expired();
  }

  void drop_memory(Entry& entry) {
    bytes_ -= entry.bytes;
    entry.bytes = 0;
    entry.memory.reset();
  }

  // Filters whose weight is gone. Looked for when a new weight arrives, which is when memory is about to grow.
  void drop_orphans() {
    for (auto it = entries_.begin(); it != entries_.end();) {
      if (it->second.storage.expired()) {
        drop_memory(it->second);
        order_.erase(it->second.use);
        it = entries_.erase(it);
      } else {
        ++it;
      }
    }
    for (auto it = frozen_.begin(); it != frozen_.end();) it = it->second.expired() ? frozen_.erase(it) : ++it;
    any_frozen_ = !frozen_.empty();
  }

  // Makes room by forgetting the filters that were not used for longest.
  void shrink(int64_t wanted) {
    for (auto it = order_.rbegin(); it != order_.rend() && bytes_ + wanted > limit_; ++it) drop_memory(entries_.at(*it));
  }

  std::mutex mutex_;
  std::unordered_map<Key, Entry, KeyHash> entries_;
  std::list<Key> order_;  // most recently used first
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> frozen_;
  std::atomic<bool> any_frozen_{false};
  std::atomic<int64_t> limit_{limit_from_environment()};
  int64_t bytes_ = 0, hits_ = 0, misses_ = 0;
};

// Recognising tensors by what they hold: lets Python keep what it derived from weights (a filter with BatchNorm folded
// in) under the same guarantee as the cache's. Two numbers per tensor. Sizes, strides and dtype are not part of it.
std::vector<int64_t> content_hash(const std::vector<at::Tensor>& tensors) {
  std::vector<int64_t> numbers;
  numbers.reserve(2 * tensors.size());
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.device().is_cpu(), "fastconv: content_hash reads CPU memory, but got ", tensor.device());
    const at::Tensor solid = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
    const auto hash = cpu::content_hash(solid.const_data_ptr(), solid.numel() * solid.element_size());
    numbers.push_back(static_cast<int64_t>(hash.low));
    numbers.push_back(static_cast<int64_t>(hash.high));
  }
  return numbers;
}

}  // namespace

std::shared_ptr<const void> kept_filter(const ConvPlan& plan, const ConvOperands& operands, const at::Tensor& weight,
                                        const Execution& exec) {
  if (!plan.row->prepack || plan.prepack_bytes < kWorthKeeping) return nullptr;
  if (!weight.is_non_overlapping_and_dense()) return nullptr;  // the hash reads one solid block
  return Cache::instance().find_or_make(plan, operands, weight, exec);
}

void freeze_weight(const at::Tensor& weight, bool frozen) { Cache::instance().freeze(weight, frozen); }
FilterCacheStatistics filter_cache_statistics() { return Cache::instance().statistics(); }
void set_filter_cache_limit(int64_t bytes) { Cache::instance().set_limit(bytes); }
void clear_filter_cache() { Cache::instance().clear(); }

}  // namespace fastconv::bindings

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.def("content_hash(Tensor[] tensors) -> int[]", fastconv::bindings::content_hash);
  m.def("freeze_weight(Tensor weight, bool frozen) -> ()", fastconv::bindings::freeze_weight);
  m.def("set_filter_cache_limit(int bytes) -> ()", fastconv::bindings::set_filter_cache_limit);
  m.def("clear_filter_cache() -> ()", fastconv::bindings::clear_filter_cache);
  // filters, bytes, hits, misses, limit in bytes
  m.def("filter_cache_statistics() -> int[]", [] {
    const auto s = fastconv::bindings::filter_cache_statistics();
    return std::vector<int64_t>{s.filters, s.bytes, s.hits, s.misses, s.limit_bytes};
  });
}
