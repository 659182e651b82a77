// Recognising tensors by what they hold: lets Python keep what it derived from weights (a filter with BatchNorm folded
// in) under the same guarantee as the filter cache.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../cpu/content_hash.h"

namespace fastconv::bindings {
namespace {

// Two numbers per tensor. Sizes, strides and dtype are not part of it.
std::vector<int64_t> content_hash(const std::vector<at::Tensor>& tensors) {
  std::vector<int64_t> numbers;
  numbers.reserve(2 * tensors.size());
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.device().is_cpu(), "fastconv: content_hash reads CPU memory, but got ", tensor.device());
    const at::Tensor solid = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
    const auto hash = cpu::content_hash(solid.const_data_ptr(), solid.numel() * solid.element_size());
    numbers.push_back(static_cast<int64_t>(hash.low));
    numbers.push_back(static_cast<int64_t>(hash.high));
  }
  return numbers;
}

}  // namespace
}  // namespace fastconv::bindings

TORCH_LIBRARY_FRAGMENT(fastconv, m) {
  m.def("content_hash(Tensor[] tensors) -> int[]", fastconv::bindings::content_hash);
}
