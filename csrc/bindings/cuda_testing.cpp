#include "cuda_testing.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastconv::bindings {
namespace {

constexpr uintptr_t kLine = 64;  // alignments matter up to this

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

DeviceCopies::~DeviceCopies() {
  for (const Copy& c : copies_) cudaFree(c.memory);
}

void* DeviceCopies::copy(void* host, int64_t bytes) {
  Copy c{};
  c.host = static_cast<unsigned char*>(host) - kGuard;
  c.bytes = bytes + 2 * kGuard;
  require(cudaMalloc(&c.memory, static_cast<size_t>(c.bytes) + kLine));
  // cudaMalloc aligns to 256 bytes.
  c.device = static_cast<unsigned char*>(c.memory) + reinterpret_cast<uintptr_t>(c.host) % kLine;
  copies_.push_back(c);
  require(cudaMemcpy(c.device, c.host, static_cast<size_t>(c.bytes), cudaMemcpyHostToDevice));
  return c.device + kGuard;
}

void DeviceCopies::write_back() {
  require(cudaDeviceSynchronize());
  for (const Copy& c : copies_)
    require(cudaMemcpy(c.host, c.device, static_cast<size_t>(c.bytes), cudaMemcpyDeviceToHost));
}

}  // namespace fastconv::bindings
