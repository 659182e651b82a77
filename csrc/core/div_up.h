#pragma once

#include <cstdint>

namespace fastconv {

// ceil(a / b) for a >= 0, b > 0. Always inlined: files compiled for one ISA must not leave a copy that others may link to.
__attribute__((always_inline)) inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastconv
