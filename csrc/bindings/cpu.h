// The CPU backend: torch's threads and memory for the CPU rows.
#pragma once

#include "tensors.h"

namespace fastconv::bindings {

extern const Backend kCpu;

}  // namespace fastconv::bindings
