// What the cost models need to know of the processor. Measured or asked for once, at the first use.
#pragma once

#include <cstdint>
#include <optional>

#include "isa.h"

namespace fastconv::cpu {

struct Processor {
  int multiply_adds = 1;           // vector multiply-adds that a core starts per cycle: 1 or 2
  int64_t second_level = 1 << 20;  // bytes of a core's second-level cache
  bool always_fresh = false;       // for tests: winograd never keeps a transformed filter, whatever it costs
  // For tests: plans are made for kernels of this ISA, which this CPU may not have. Such plans must not run.
  std::optional<Isa> other_isa{};

  Isa isa() const { return other_isa ? *other_isa : cpu::isa(); }
};

const Processor& processor();
// For tests: what the cost models shall believe from now on.
void set_processor(const Processor&);

FASTCONV_KERNEL(double, multiply_add_quotient)

}  // namespace fastconv::cpu
