// A test's operands on a GPU: copies of host memory, its guard zones included. See testing.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace fastconv::bindings {

class DeviceCopies {
 public:
  // Bytes before and after an operand that are copied with it, so that what a kernel writes there shows on the host.
  static constexpr int64_t kGuard = 64;

  ~DeviceCopies();
  // The device address of a copy of [host - kGuard, host + bytes + kGuard), aligned as `host` is.
  void* copy(void* host, int64_t bytes);
  // Waits for the GPU and writes every copy back. Throws std::runtime_error with CUDA's words if a kernel failed.
  void write_back();

 private:
  struct Copy {
    void* memory;  // as allocated
    unsigned char* device;
    unsigned char* host;
    int64_t bytes;
  };
  std::vector<Copy> copies_;
};

}  // namespace fastconv::bindings
