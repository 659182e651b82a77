#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastconv::cpu {

const char* name(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "?";
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable{Isa::scalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  FASTCONV_FOR_AVX2(if (avx2) usable.push_back(Isa::avx2);)
  FASTCONV_FOR_AVX512(if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
                          usable.push_back(Isa::avx512);)
  (void)avx2;
#endif
  return usable;
}

namespace {

Isa find(const std::string& wanted) {
  std::string have;
  for (Isa isa : usable_isas()) {
    if (wanted == name(isa)) return isa;
    have += std::string(have.empty() ? "" : ", ") + name(isa);
  }
  throw std::runtime_error("fastconv: FASTCONV_CPU_ISA=" + wanted + " is not usable here; usable are: " + have);
}

std::atomic<int> chosen{-1};

}  // namespace

Isa isa() {
  const int known = chosen.load(std::memory_order_relaxed);
  if (known >= 0) return static_cast<Isa>(known);
  const char* wanted = std::getenv("FASTCONV_CPU_ISA");
  const Isa isa = wanted && *wanted ? find(wanted) : usable_isas().back();
  chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
  return isa;
}

Isa isa_of(const std::string& wanted) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    if (wanted == name(isa)) return isa;
  throw std::runtime_error("fastconv: there is no instruction set " + wanted + "; there are scalar, avx2, avx512");
}

void set_isa(const std::string& wanted) { chosen.store(static_cast<int>(find(wanted)), std::memory_order_relaxed); }

}  // namespace fastconv::cpu
