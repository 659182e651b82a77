#include "table.h"

// The row headers: each declares its entry points.
#include "../cpu/depthwise.h"
#include "../cpu/direct.h"
#include "../cpu/im2col.h"
#include "../cpu/pool.h"
#include "../cpu/winograd.h"
#include "../cuda/rows.h"

namespace fastconv {
namespace {

template <class... E>
constexpr Mask mask(E... e) {
  return (bit(e) | ...);
}

// The words of algorithms.inc.
constexpr Mask forward = bit(Pass::forward), grad_input = bit(Pass::grad_input), grad_weight = bit(Pass::grad_weight),
               gather = bit(Pass::gather);
constexpr Mask floats = mask(DType::f32, DType::f64, DType::f16, DType::bf16);
constexpr Mask integers = mask(DType::u8, DType::i8, DType::i16, DType::i32, DType::i64);
constexpr Mask f32 = bit(DType::f32), f16 = bit(DType::f16), bf16 = bit(DType::bf16), i64 = bit(DType::i64);

}  // namespace

#define FASTCONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry)      \
  {                                                                                                     \
    #row, Device::device, passes, dtypes, #min_arch, deterministic, summary, source, entry##_supports, \
        entry##_plan, entry##_run                                                                       \
  }

// A CUDA row: in the emulator always, on GPUs if the CUDA kernels were built. All of them are deterministic.
#define FASTCONV_SIMULATED(Row, row, passes, dtypes, min_arch, summary, source, entry, ...)                         \
  Row{FASTCONV_ROW(row, simulated, passes, dtypes, min_arch, true, summary, source, simulated::entry), __VA_ARGS__},
#ifdef FASTCONV_WITH_CUDA
#define FASTCONV_ON_GPUS(Row, row, passes, dtypes, min_arch, summary, source, entry, ...)                           \
  Row{FASTCONV_ROW(row, cuda, passes, dtypes, min_arch, true, summary, source, cuda::entry), __VA_ARGS__},          \
      FASTCONV_SIMULATED(Row, row, passes, dtypes, min_arch, summary, source, entry, __VA_ARGS__)
#else
#define FASTCONV_ON_GPUS FASTCONV_SIMULATED
#endif

const std::vector<ConvRow>& conv_rows() {
#define FASTCONV_CONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry)          \
  ConvRow{FASTCONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry), entry##_prepack, \
          entry##_max_pools},
#define FASTCONV_GPU_CONV_ROW(row, passes, dtypes, min_arch, summary, source, entry) \
  FASTCONV_ON_GPUS(ConvRow, row, passes, dtypes, min_arch, summary, source, entry, nullptr, false)
#define FASTCONV_POOL_ROW(...)
#define FASTCONV_GPU_POOL_ROW(...)
  static const std::vector<ConvRow> rows = {
#include "algorithms.inc"
  };
#undef FASTCONV_CONV_ROW
#undef FASTCONV_GPU_CONV_ROW
#undef FASTCONV_POOL_ROW
#undef FASTCONV_GPU_POOL_ROW
  return rows;
}

const std::vector<PoolRow>& pool_rows() {
#define FASTCONV_CONV_ROW(...)
#define FASTCONV_GPU_CONV_ROW(...)
#define FASTCONV_POOL_ROW(...) PoolRow{FASTCONV_ROW(__VA_ARGS__)},
#define FASTCONV_GPU_POOL_ROW(row, passes, dtypes, min_arch, summary, source, entry) \
  FASTCONV_ON_GPUS(PoolRow, row, passes, dtypes, min_arch, summary, source, entry)
  static const std::vector<PoolRow> rows = {
#include "algorithms.inc"
  };
#undef FASTCONV_CONV_ROW
#undef FASTCONV_GPU_CONV_ROW
#undef FASTCONV_POOL_ROW
#undef FASTCONV_GPU_POOL_ROW
  return rows;
}

}  // namespace fastconv
