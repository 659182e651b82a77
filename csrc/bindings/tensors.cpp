#include "tensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "memory.h"

namespace fastconv::bindings {

DType dtype_of(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::f32;
    case at::kDouble: return DType::f64;
    case at::kHalf: return DType::f16;
    case at::kBFloat16: return DType::bf16;
    case at::kByte: return DType::u8;
    case at::kChar: return DType::i8;
    case at::kShort: return DType::i16;
    case at::kInt: return DType::i32;
    case at::kLong: return DType::i64;
    default: break;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, '"', op, "\" not implemented for '", c10::toString(tensor.scalar_type()), "'");
}

Strides4 strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

uint8_t alignment_of(const Tensor& tensor) {
  const auto address = reinterpret_cast<uint64_t>(tensor.const_data_ptr());
  return static_cast<uint8_t>(__builtin_ctzll(address | uint64_t{1} << kFullAlignment));
}

Tensor empty_result(IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  Tensor out = at::empty(sizes, options, format);
  if (out.is_cpu()) advise_huge_pages(out.mutable_data_ptr(), out.nbytes());
  return out;
}

at::MemoryFormat format_of(const Tensor& tensor) { return tensor.suggest_memory_format(); }

void check_list(IntArrayRef values, size_t count, const char* name) {
  TORCH_CHECK(values.size() == count, "expected ", name, " to be a list of ", count, " values, but got ", name, "=",
              values);
}

void check_same_kind(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "Input type (", c10::toString(like.scalar_type()),
              ") of ", like_name, " and type (", c10::toString(tensor.scalar_type()), ") of ", name,
              " should be the same");
  TORCH_CHECK(tensor.device() == like.device() && tensor.layout() == at::kStrided, "expected ", name, " on ",
              like.device(), ", where ", like_name, " is, but got a ", tensor.layout(), " one on ", tensor.device());
}

void check_sizes(const Tensor& tensor, const Sizes4& sizes, const char* name) {
  TORCH_CHECK(tensor.sizes() == IntArrayRef(sizes), "expected ", name, " of size ", IntArrayRef(sizes), ", but got ",
              tensor.sizes());
}

}  // namespace fastconv::bindings
