// Kernels with one bug each, and sound ones beside them, for the tests of the checker (test_simt_checker.py).
// Each takes x (read) and y (written), 9 blocks of 256 floats.
#include <cstring>
#include <string>

#include "cuda/atoms_ldmatrix.cuh"
#include "cuda/runtime.cuh"
#include "simt/checker/checker.h"

namespace fastconv::FASTCONV_GPU {
namespace {

constexpr unsigned kThreads = 256, kBlocks = 9;

struct Row {
  float v[kThreads];
};

#define FASTCONV_KERNEL(name) __global__ void name([[maybe_unused]] const float* x, [[maybe_unused]] float* y)
#define FASTCONV_ME (blockIdx.x * kThreads + threadIdx.x)

// --- sound ---------------------------------------------------------------------------------------------------------------

FASTCONV_KERNEL(reverse) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncthreads();
  y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
}

FASTCONV_KERNEL(neighbours_after_syncwarp) {
  Row& row = static_shared<Row>();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncwarp();
  y[FASTCONV_ME] = row.v[threadIdx.x ^ 1];
}

FASTCONV_KERNEL(reused_after_barrier) {
  Row& row = dynamic_shared<Row>();
  for (int i = 0; i < 3; ++i) {
    row.v[threadIdx.x] = x[FASTCONV_ME] + i;
    __syncthreads();
    y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
    __syncthreads();
  }
}

FASTCONV_KERNEL(sum_by_shuffles) {
  float v = x[FASTCONV_ME];
  for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  y[FASTCONV_ME] = v;
}

FASTCONV_KERNEL(copied_and_waited_for) {
  Row& row = dynamic_shared<Row>();
  simt::copy_async(row.v + threadIdx.x, x + FASTCONV_ME, 4, 4, simt::Where::here());
  simt::copy_async_commit();
  simt::copy_async_wait(0);
  __syncthreads();
  y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
}

FASTCONV_KERNEL(producer_and_consumer) {
  Row& row = dynamic_shared<Row>();
  if (threadIdx.x < kThreads / 2) {
    row.v[threadIdx.x] = x[FASTCONV_ME];
    simt::sync_named(1, kThreads, false, simt::Where::here());
  } else {
    simt::sync_named(1, kThreads, true, simt::Where::here());
    y[FASTCONV_ME] = row.v[threadIdx.x - kThreads / 2];
  }
}

// --- with a bug ------------------------------------------------------------------------------------------------------------

FASTCONV_KERNEL(read_past_the_end) { y[FASTCONV_ME] = x[FASTCONV_ME + 1]; }
FASTCONV_KERNEL(read_before_the_start) { y[FASTCONV_ME] = x[static_cast<int>(FASTCONV_ME) - 2]; }
FASTCONV_KERNEL(write_past_the_end) { y[FASTCONV_ME + 3] = x[FASTCONV_ME]; }

FASTCONV_KERNEL(shared_past_the_end) {
  Row& row = dynamic_shared<Row>();
  const float* next = row.v + threadIdx.x + 1;
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncthreads();
  y[FASTCONV_ME] = *next;
}

FASTCONV_KERNEL(unwritten_shared) {
  Row& row = dynamic_shared<Row>();
  if (threadIdx.x % 2) row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncthreads();
  y[FASTCONV_ME] = row.v[threadIdx.x];
}

FASTCONV_KERNEL(unwritten_global) { y[FASTCONV_ME] = y[FASTCONV_ME] + x[FASTCONV_ME]; }

FASTCONV_KERNEL(missing_syncthreads) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
}

FASTCONV_KERNEL(missing_second_syncthreads) {
  Row& row = dynamic_shared<Row>();
  for (int i = 0; i < 2; ++i) {
    row.v[threadIdx.x] = x[FASTCONV_ME] + i;
    __syncthreads();
    y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
  }
}

FASTCONV_KERNEL(missing_syncwarp) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  y[FASTCONV_ME] = row.v[threadIdx.x ^ 1];
}

FASTCONV_KERNEL(syncwarp_for_another_warp) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncwarp();
  y[FASTCONV_ME] = row.v[threadIdx.x ^ 32];
}

FASTCONV_KERNEL(shuffle_is_no_fence) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  const int lane = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  y[FASTCONV_ME] = row.v[lane];
}

FASTCONV_KERNEL(missing_copy_wait) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  simt::copy_async(row.v + threadIdx.x, x + FASTCONV_ME, 4, 4, simt::Where::here());
  simt::copy_async_commit();
  __syncthreads();
  y[FASTCONV_ME] = row.v[kThreads - 1 - threadIdx.x];
  simt::copy_async_wait(0);
}

FASTCONV_KERNEL(copy_overwrites_too_early) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncthreads();
  const float before = row.v[kThreads - 1 - threadIdx.x];
  simt::copy_async(row.v + threadIdx.x, x + FASTCONV_ME, 4, 4, simt::Where::here());
  simt::copy_async_commit();
  __syncthreads();
  simt::copy_async_wait(0);
  y[FASTCONV_ME] = before + row.v[threadIdx.x];
}

FASTCONV_KERNEL(divergent_barrier) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[FASTCONV_ME] = x[FASTCONV_ME];
}

FASTCONV_KERNEL(skipped_barrier) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  y[FASTCONV_ME] = x[FASTCONV_ME];
}

FASTCONV_KERNEL(divergent_shuffle) {
  float v = x[FASTCONV_ME];
  if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(~0u, v, 1);
  y[FASTCONV_ME] = v;
}

FASTCONV_KERNEL(shuffle_from_a_missing_lane) {
  float v = x[FASTCONV_ME];
  if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffffu, v, 20);
  y[FASTCONV_ME] = v;
}

FASTCONV_KERNEL(named_barrier_of_one_side) {
  if (threadIdx.x < kThreads / 2) simt::sync_named(1, kThreads, true, simt::Where::here());
  y[FASTCONV_ME] = x[FASTCONV_ME];
}

FASTCONV_KERNEL(two_blocks_write_one_word) { y[threadIdx.x] = x[FASTCONV_ME]; }

FASTCONV_KERNEL(blocks_pass_a_value) {
  y[FASTCONV_ME] = blockIdx.x == 0 ? x[FASTCONV_ME] : y[threadIdx.x] + x[FASTCONV_ME];
}

FASTCONV_KERNEL(threads_race_in_global_memory) {
  y[FASTCONV_ME] = x[FASTCONV_ME];
  if (threadIdx.x + 1 < kThreads) y[FASTCONV_ME + 1] = x[FASTCONV_ME];
}

// --- counted ---------------------------------------------------------------------------------------------------------------

// Stride 8 floats: each lane of a warp in a sector of its own. Shared columns of a 32-float row: 32 lanes, one bank.
FASTCONV_KERNEL(strided_accesses) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x % 8 * 32 + threadIdx.x / 8] = x[threadIdx.x * 8];
  __syncthreads();
  y[FASTCONV_ME] = row.v[threadIdx.x];
}

// Four 8x8 matrices of a warp. The rows of a matrix lie 128 bytes apart, in the same four banks, or one after the other.
template <int RowBytes, int MatrixBytes>
__device__ void load_matrices(const float* x, float* y) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  __syncthreads();
  unsigned registers[4];
  const unsigned lane = threadIdx.x % 32;
  LoadMatrices<4>::load(registers, reinterpret_cast<const char*>(row.v) + lane % 8 * RowBytes + lane / 8 * MatrixBytes);
  y[FASTCONV_ME] = static_cast<float>(registers[0] + registers[1] + registers[2] + registers[3]);
}
FASTCONV_KERNEL(matrix_rows_in_the_same_banks) { load_matrices<128, 16>(x, y); }
FASTCONV_KERNEL(matrix_rows_in_all_banks) { load_matrices<16, 128>(x, y); }

// The last row of a matrix ends 16 bytes past the shared memory; and no barrier after the rows are written.
FASTCONV_KERNEL(matrix_row_past_the_end) { load_matrices<128, 144>(x, y); }
FASTCONV_KERNEL(matrix_rows_without_barrier) {
  Row& row = dynamic_shared<Row>();
  row.v[threadIdx.x] = 0;
  __syncthreads();
  row.v[threadIdx.x] = x[FASTCONV_ME];
  unsigned registers[1];
  LoadMatrices<1>::load(registers, row.v + (threadIdx.x + 32) % kThreads / 32 * 32 + threadIdx.x % 8 * 4);
  y[FASTCONV_ME] = static_cast<float>(registers[0]);
}

struct Entry {
  const char* name;
  void (*kernel)(const float*, float*);
};

const Entry kKernels[] = {
#define FASTCONV_ENTRY(name) {#name, name},
    FASTCONV_ENTRY(reverse) FASTCONV_ENTRY(neighbours_after_syncwarp) FASTCONV_ENTRY(reused_after_barrier)
    FASTCONV_ENTRY(sum_by_shuffles) FASTCONV_ENTRY(copied_and_waited_for) FASTCONV_ENTRY(producer_and_consumer)
    FASTCONV_ENTRY(read_past_the_end) FASTCONV_ENTRY(read_before_the_start) FASTCONV_ENTRY(write_past_the_end)
    FASTCONV_ENTRY(shared_past_the_end) FASTCONV_ENTRY(unwritten_shared) FASTCONV_ENTRY(unwritten_global)
    FASTCONV_ENTRY(missing_syncthreads) FASTCONV_ENTRY(missing_second_syncthreads) FASTCONV_ENTRY(missing_syncwarp)
    FASTCONV_ENTRY(syncwarp_for_another_warp) FASTCONV_ENTRY(shuffle_is_no_fence) FASTCONV_ENTRY(missing_copy_wait)
    FASTCONV_ENTRY(copy_overwrites_too_early) FASTCONV_ENTRY(divergent_barrier) FASTCONV_ENTRY(skipped_barrier)
    FASTCONV_ENTRY(divergent_shuffle) FASTCONV_ENTRY(shuffle_from_a_missing_lane)
    FASTCONV_ENTRY(named_barrier_of_one_side) FASTCONV_ENTRY(two_blocks_write_one_word)
    FASTCONV_ENTRY(blocks_pass_a_value) FASTCONV_ENTRY(threads_race_in_global_memory) FASTCONV_ENTRY(strided_accesses)
    FASTCONV_ENTRY(matrix_rows_in_the_same_banks) FASTCONV_ENTRY(matrix_rows_in_all_banks)
    FASTCONV_ENTRY(matrix_row_past_the_end) FASTCONV_ENTRY(matrix_rows_without_barrier)
#undef FASTCONV_ENTRY
};

}  // namespace

// Runs one of them; "" or the failure's message. `blocks` limits the grid.
std::string run_planted(const char* name, unsigned blocks) {
  for (const Entry& e : kKernels) {
    if (std::strcmp(e.name, name) != 0) continue;
    struct alignas(64) Buffer {  // of whole sectors, and apart from the other
      float before[64], v[kBlocks * kThreads], after[64];
    };
    static Buffer x, y;
    for (unsigned i = 0; i < kBlocks * kThreads; ++i) x.v[i] = static_cast<float>(i);
    simt::register_buffer(x.v, sizeof x.v, "x", true, 4);
    simt::register_buffer(y.v, sizeof y.v, "y", false, 4);
    const Status s = launch(name, e.kernel, dim3{blocks, 1, 1}, dim3{kThreads, 1, 1}, sizeof(Row), nullptr,
                            static_cast<const float*>(x.v), +y.v);
    simt::forget_buffers();
    return s.reason();
  }
  return "no such kernel";
}

}  // namespace fastconv::FASTCONV_GPU

extern "C" __attribute__((visibility("default"))) int fastconv_planted(const char* name, unsigned blocks, uint64_t seed,
                                                                       int eager, char* message, int64_t capacity) {
  fastconv::simt::settings().seed = seed;
  fastconv::simt::settings().eager_copies = eager != 0;
  const std::string said = fastconv::simulated::run_planted(name, blocks);
  std::strncpy(message, said.c_str(), static_cast<size_t>(capacity) - 1);
  message[capacity - 1] = 0;
  return said.empty() ? 0 : 1;
}
