// What is known of every byte that kernels may touch. See checker.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../block.h"

namespace fastconv::simt {

// A moment of one thread: its `clock`-th stretch between synchronisations.
struct Moment {
  uint32_t clock = 0;  // 0: never
  uint16_t thread = 0;
};

// How far each thread of a block is known to have come; shared by all that met at one barrier.
using Knowledge = std::shared_ptr<const std::vector<uint32_t>>;

struct Access {
  const unsigned char* address;
  int64_t bytes;
  bool write;
  const void* instruction;   // the access; null: `where` says it
  Where where{"", 0};
};

class BlockShadow {
 public:
  void begin(Block& block);
  void met(Thread* const* threads, int count, int id);
  void passed(const Thread& thread, int id);
  void check_shared(const Access& access);
  bool ordered(Moment earlier) const;  // before whatever the running thread does now
  Moment now() const;
  uint64_t epoch() const { return epoch_; }

 private:
  // Two bytes: the smallest element that kernels keep in shared memory.
  static constexpr int64_t kGranule = 2;
  struct Cell {
    uint64_t epoch = 0;         // of `readers`
    uint64_t block = 0;         // serial number; another one: nothing is known
    Moment write;
    const void* instruction = nullptr;  // of the write
    Where where{"", 0};
    std::vector<Moment> readers;  // since the write, in this epoch
  };

  Block* block_ = nullptr;
  uint64_t serial_ = 0, epoch_ = 0;  // epoch: counts the barriers of all threads
  std::vector<uint32_t> clocks_;
  std::vector<Knowledge> knowledge_;
  std::vector<std::vector<uint32_t>> passed_;  // for each named barrier
  std::vector<Cell> cells_;
};

BlockShadow& shadow();  // of this OS thread's block
bool check_global(const Access& access);  // whether it is in a registered buffer
void check_copy(const Copy& copy);

namespace traffic_log {  // see traffic.cpp
bool enabled();
void record(const Access& access, bool shared);
void flush(Block& block);
}

}  // namespace fastconv::simt
