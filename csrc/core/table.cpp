#include "table.h"

#include <string>

// The row headers: each declares its entry points.
#include "../cpu/direct.h"

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
constexpr Mask i64 = bit(DType::i64);

template <class Problem>
bool wants_determinism(const Problem&) {
  return false;  // pools have deterministic rows only
}
bool wants_determinism(const ConvProblem& p) { return p.deterministic; }

template <class Row, class Problem>
Status answer(const Row& row, const Problem& p, Device device) {
  if (row.device != device) return Status::refuse(std::string("runs on ") + name(row.device) + " only");
  if (!(row.passes & bit(p.pass))) return Status::refuse(std::string("does not do ") + name(p.pass));
  if (!(row.dtypes & bit(p.dtype))) return Status::refuse(std::string("does not take ") + name(p.dtype));
  if (wants_determinism(p) && !row.deterministic) return Status::refuse("is not deterministic");
  return row.supports(p);
}

}  // namespace

const char* name(Device d) {
  switch (d) {
    case Device::cpu: return "cpu";
    case Device::cuda: return "cuda";
  }
  return "?";
}

#define FASTCONV_ROW(row, device, passes, dtypes, min_arch, deterministic, summary, source, entry)        \
  {                                                                                                       \
    {                                                                                                     \
      #row, Device::device, passes, dtypes, #min_arch, deterministic, summary, source, entry##_supports, \
          entry##_plan, entry##_run                                                                       \
    }                                                                                                     \
  }

const std::vector<ConvRow>& conv_rows() {
#define FASTCONV_CONV_ROW(...) ConvRow FASTCONV_ROW(__VA_ARGS__),
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
#define FASTCONV_POOL_ROW(...) PoolRow FASTCONV_ROW(__VA_ARGS__),
  static const std::vector<PoolRow> rows = {
#include "algorithms.inc"
  };
#undef FASTCONV_CONV_ROW
#undef FASTCONV_POOL_ROW
  return rows;
}

Status supports(const ConvRow& row, const ConvProblem& p, Device device) { return answer(row, p, device); }
Status supports(const PoolRow& row, const PoolProblem& p, Device device) { return answer(row, p, device); }

}  // namespace fastconv
