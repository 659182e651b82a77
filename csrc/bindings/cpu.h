// The operators on the CPU: torch's threads and memory for the CPU rows.
#pragma once

#include "operators.h"

namespace fastconv::bindings {

extern const Backend kCpu;

struct NoGuard {
  explicit NoGuard(const Tensor&) {}
};

using CpuOperators = Operators<kCpu, NoGuard>;

}  // namespace fastconv::bindings
