// Run-time choice of the instruction set. The files in kernels/ are compiled once for each ISA, into the namespaces
// cpu::scalar, cpu::avx2 and cpu::avx512; everything else is baseline code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastconv::cpu {

enum class Isa { scalar, avx2, avx512 };

const char* name(Isa);
// What plans have to know of kernels of an ISA that may not be the one in use; kernels assert that it holds for them.
constexpr int64_t vector_bytes(Isa isa) { return isa == Isa::avx512 ? 64 : isa == Isa::avx2 ? 32 : 16; }
constexpr int64_t tile_height(Isa isa) { return isa == Isa::avx512 ? 14 : isa == Isa::avx2 ? 6 : 5; }
constexpr int64_t kTileVectors = 2;  // across a register tile
// Those that were compiled and that this CPU has, plainest first.
std::vector<Isa> usable_isas();
// The one in use: the best usable one, or what FASTCONV_CPU_ISA names. Throws std::runtime_error if that is unusable.
Isa isa();
// For tests: changes the choice for calls that follow. Throws like isa().
void set_isa(const std::string& name);
// The ISA of that name, usable or not. Throws std::runtime_error if there is none.
Isa isa_of(const std::string& name);

}  // namespace fastconv::cpu

#ifdef FASTCONV_HAVE_AVX2
#define FASTCONV_FOR_AVX2(...) __VA_ARGS__
#else
#define FASTCONV_FOR_AVX2(...)
#endif
#ifdef FASTCONV_HAVE_AVX512
#define FASTCONV_FOR_AVX512(...) __VA_ARGS__
#else
#define FASTCONV_FOR_AVX512(...)
#endif

// Declares one kernel entry point in every ISA's namespace. Use inside namespace fastconv::cpu.
#define FASTCONV_KERNEL(result, function, ...) \
  namespace scalar {                           \
  result function(__VA_ARGS__);                \
  }                                            \
  namespace avx2 {                             \
  result function(__VA_ARGS__);                \
  }                                            \
  namespace avx512 {                           \
  result function(__VA_ARGS__);                \
  }

// Calls it in the namespace of the ISA in use.
#define FASTCONV_DISPATCH(function, ...)                                                             \
  [&] {                                                                                              \
    switch (::fastconv::cpu::isa()) {                                                                \
      FASTCONV_FOR_AVX512(case ::fastconv::cpu::Isa::avx512                                          \
                          : return ::fastconv::cpu::avx512::function(__VA_ARGS__);)                  \
      FASTCONV_FOR_AVX2(case ::fastconv::cpu::Isa::avx2                                              \
                        : return ::fastconv::cpu::avx2::function(__VA_ARGS__);)                      \
      default:                                                                                       \
        return ::fastconv::cpu::scalar::function(__VA_ARGS__);                                       \
    }                                                                                                \
  }()
