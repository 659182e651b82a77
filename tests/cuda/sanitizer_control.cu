// One planted bug for each tool of compute-sanitizer, and none: gpu-check believes a tool that finds these only.
//
// sanitizer_control memcheck | racecheck | synccheck | none
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

__global__ void past_the_end(int* p, int n) { p[n + threadIdx.x] = 1; }

__global__ void race(int* p) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  p[threadIdx.x] = shared[63 - threadIdx.x];  // another warp's, with no barrier between
}

__global__ void divergent_barrier(int* p) {
  if (threadIdx.x < 35) __syncthreads();  // 29 threads of the second warp stay away
  p[threadIdx.x] = 1;
}

__global__ void sound(int* p) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  p[threadIdx.x] = shared[63 - threadIdx.x];
}

int main(int argc, char** argv) {
  const char* bug = argc > 1 ? argv[1] : "none";
  int* p = nullptr;
  if (const cudaError_t error = cudaMalloc(&p, 64 * sizeof(int)); error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 2;
  }
  if (!std::strcmp(bug, "memcheck")) past_the_end<<<1, 64>>>(p, 64);
  else if (!std::strcmp(bug, "racecheck")) race<<<1, 64>>>(p);
  else if (!std::strcmp(bug, "synccheck")) divergent_barrier<<<1, 64>>>(p);
  else sound<<<1, 64>>>(p);
  int last = -1;
  const cudaError_t error = cudaMemcpy(&last, p, sizeof(int), cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) std::printf("%s\n", cudaGetErrorString(error));
  return error == cudaSuccess ? 0 : 2;
}
