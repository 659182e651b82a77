// The checker: finds what a GPU would do silently. Part of the checked build only.
//
// Kernels are compiled with -fsanitize=thread and linked without its library, so that every access of theirs calls one
// of the hooks in hooks.cpp first. Each access is held against
//   bounds       of the registered buffers, of the block's shared memory, of the stacks: everything else is out of bounds
//   writes       a read of shared memory, or of a buffer registered as unwritten, that nobody has written
//   order        two accesses to the same bytes, one of them a write, neither before the other. Within a block by vector
//                clocks (Lamport 1978, Mattern 1989) that barriers and __syncwarp join, in the manner of FastTrack
//                (Flanagan and Freund, PLDI 2009); between blocks nothing is ordered, so any such pair is a race
// The first finding ends the launch before the access is made, with the line of source.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../simt.h"

namespace fastconv::simt {

// `name` is what reports call it. `written`: it holds data; else reads must follow writes. `granule`: the bytes that are
// tracked together, 1, 2 or 4; threads may write neighbouring granules without a race.
void register_buffer(const void* begin, int64_t bytes, const char* name, bool written, int granule);
void forget_buffers();

// What the lanes of a warp did together by one instruction of the source, summed over a launch.
struct Traffic {
  const void* instruction;  // an address for addr2line, relative to the library
  bool shared, write;
  int access_bytes;         // of one lane
  int64_t requests = 0;     // warp-wide
  int64_t lanes = 0;        // lane accesses
  int64_t bytes = 0;        // distinct bytes asked for
  int64_t units = 0;        // global: 32-byte sectors moved; shared: cycles, one conflict-free pass each
  int64_t minimum = 0;      // the least units that the same bytes need
};
// Starts (and clears) or stops counting. Slow: every access of a launch is kept until the block's next barrier.
void count_traffic(bool on);
std::vector<Traffic> traffic();
std::vector<std::pair<std::string, int64_t>> atoms();  // executions of each counted instruction

// "file:line" of an address in this library, found by addr2line; the address itself where that fails.
std::string source_line(const void* address);

}  // namespace fastconv::simt
