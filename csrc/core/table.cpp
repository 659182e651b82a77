#include "table.h"

// The row headers: each declares its entry points.
#include "../cpu/depthwise.h"
#include "../cpu/direct.h"
#include "../cpu/im2col.h"
#include "../cpu/pool.h"
#include "../cpu/winograd.h"

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

const std::vector<ConvRow>& conv_rows() {
#define FASTCONV_CONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry)          \
  ConvRow{FASTCONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry), entry##_prepack},
#define FASTCONV_POOL_ROW(...)
  static const std::vector<ConvRow> rows = {
#include "algorithms.inc"
  };
#undef FASTCONV_CONV_ROW
#undef FASTCONV_POOL_ROW
  return rows;
}

const std::vector<PoolRow>& pool_rows() {
#define FASTCONV_CONV_ROW(...)
#define FASTCONV_POOL_ROW(...) PoolRow{FASTCONV_ROW(__VA_ARGS__)},
  static const std::vector<PoolRow> rows = {
#include "algorithms.inc"
  };
#undef FASTCONV_CONV_ROW
#undef FASTCONV_POOL_ROW
  return rows;
}

}  // namespace fastconv
