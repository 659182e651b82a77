// mma.sync: c += a * b by the tensor cores of one warp (PTX ISA 9.7.14.5, "Matrix fragments for mma").
//
// One struct for each instruction. a_at(lane, i), b_at, c_at say which element of the matrices register element i of a lane
// holds: A is M x K, B is K x N, C is M x N. With g = lane / 4 and q = lane % 4 they follow the figures of the PTX ISA.
// The emulator multiplies exactly what these say; that hardware agrees is what `make atoms-check` is for. Hardware sums in
// an order, and with a rounding, of its own.
#pragma once

#include "atoms_layout.cuh"

namespace fastconv::FASTCONV_GPU {

// 16-bit elements, two to a register, the lower half first.
struct Mma16 {
  static constexpr int M = 16, N = 8, K = 16, kA = 8, kB = 4, kC = 4;
  using A = unsigned[4];
  using B = unsigned[2];
  using C = float[4];
  static __host__ __device__ constexpr Coordinate a_at(int lane, int i) {
    return {lane / 4 + 8 * (i / 2 % 2), lane % 4 * 2 + i % 2 + 8 * (i / 4)};
  }
  static __host__ __device__ constexpr Coordinate b_at(int lane, int i) {
    return {lane % 4 * 2 + i % 2 + 8 * (i / 2), lane / 4};
  }
  static __host__ __device__ constexpr Coordinate c_at(int lane, int i) {
    return {lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2};
  }
};

#ifdef FASTCONV_SIMT
// What all lanes do together: gather A and B by their layouts, multiply, add to C. `value` reads element i of a fragment.
template <class Atom, class Value>
void multiply_in_warp(const char* name, typename Atom::C& c, const typename Atom::A& a, const typename Atom::B& b,
                      simt::Where where) {
  struct Lane {
    typename Atom::C& c;
    const typename Atom::A& a;
    const typename Atom::B& b;
    const char* name;
    simt::Where where;
  } mine{c, a, b, name, where};
  simt::meet_warp(
      ~0u, name, &mine,
      [](void* const* lanes, unsigned mask) {
        const auto lane = [&](int l) -> Lane& { return *static_cast<Lane*>(lanes[l]); };
        if (mask != ~0u) simt::fail("mma needs all 32 lanes", lane(__builtin_ctz(mask)).where);
        simt::count(lane(0).name);
        using Sum = std::remove_all_extents_t<typename Atom::C>;
        Sum ma[Atom::M][Atom::K], mb[Atom::K][Atom::N];
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < Atom::kA; ++i) {
            const Coordinate at = Atom::a_at(l, i);
            ma[at.row][at.column] = Value::of(lane(l).a, i);
          }
          for (int i = 0; i < Atom::kB; ++i) {
            const Coordinate at = Atom::b_at(l, i);
            mb[at.row][at.column] = Value::of(lane(l).b, i);
          }
        }
        for (int l = 0; l < 32; ++l)
          for (int i = 0; i < Atom::kC; ++i) {
            const Coordinate at = Atom::c_at(l, i);
            Sum sum = lane(l).c[i];
            for (int k = 0; k < Atom::K; ++k) sum += ma[at.row][k] * mb[k][at.column];
            lane(l).c[i] = sum;
          }
      },
      where);
}

template <class T>
struct HalfOf {  // element i of packed 16-bit registers
  template <int N>
  static float of(const unsigned (&registers)[N], int i) {
    const auto bits = static_cast<unsigned short>(registers[i / 2] >> 16 * (i % 2));
    T value;
    std::memcpy(&value, &bits, 2);
    return widen(value);
  }
};
#define FASTCONV_MULTIPLY(Atom, Value, name)                                        \
  static void multiply(C& c, const A& a, const B& b, simt::Where where = simt::Where::here()) { \
    multiply_in_warp<Atom, Value>(name, c, a, b, where);                            \
  }
#endif

template <class T>
struct MmaHalf;  // m16n8k16 on f16 or bf16, sums in fp32

#ifdef FASTCONV_SIMT
#define FASTCONV_MMA_HALF(T, name) FASTCONV_MULTIPLY(MmaHalf<T>, HalfOf<T>, "mma.m16n8k16." name)
#else
#define FASTCONV_MMA_HALF(T, name)                                                                                  \
  static __device__ __forceinline__ void multiply(C& c, const A& a, const B& b) {                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                             \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                       \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
  }
#endif
template <>
struct MmaHalf<f16> : Mma16 {
  FASTCONV_MMA_HALF(f16, "f16")
};
template <>
struct MmaHalf<bf16> : Mma16 {
  FASTCONV_MMA_HALF(bf16, "bf16")
};
#undef FASTCONV_MMA_HALF

// tf32: floats of which the lower 13 bits are not read. to_tf32 rounds to nearest; without it, they are cut off.
struct MmaTf32 {
  static constexpr int M = 16, N = 8, K = 8, kA = 4, kB = 2, kC = 4;
  using A = unsigned[4];
  using B = unsigned[2];
  using C = float[4];
  static __host__ __device__ constexpr Coordinate a_at(int lane, int i) {
    return {lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2)};
  }
  static __host__ __device__ constexpr Coordinate b_at(int lane, int i) { return {lane % 4 + 4 * i, lane / 4}; }
  static __host__ __device__ constexpr Coordinate c_at(int lane, int i) { return Mma16::c_at(lane, i); }

#ifdef FASTCONV_SIMT
  struct Value {
    template <int N>
    static float of(const unsigned (&registers)[N], int i) {
      const unsigned bits = registers[i] & ~0x1fffu;
      float v;
      std::memcpy(&v, &bits, 4);
      return v;
    }
  };
  static unsigned to_tf32(float v) {  // nearest, ties away from zero; infinities and NaN stay
    unsigned bits;
    std::memcpy(&bits, &v, 4);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
  }
  FASTCONV_MULTIPLY(MmaTf32, Value, "mma.m16n8k8.tf32")
#else
  static __device__ __forceinline__ unsigned to_tf32(float v) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return bits;
  }
  static __device__ __forceinline__ void multiply(C& c, const A& a, const B& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
};

struct MmaF64 {
  static constexpr int M = 8, N = 8, K = 4, kA = 1, kB = 1, kC = 2;
  using A = double[1];
  using B = double[1];
  using C = double[2];
  static __host__ __device__ constexpr Coordinate a_at(int lane, int) { return {lane / 4, lane % 4}; }
  static __host__ __device__ constexpr Coordinate b_at(int lane, int) { return {lane % 4, lane / 4}; }
  static __host__ __device__ constexpr Coordinate c_at(int lane, int i) { return {lane / 4, lane % 4 * 2 + i}; }

#ifdef FASTCONV_SIMT
  struct Value {
    static double of(const double (&fragment)[1], int) { return fragment[0]; }
  };
  FASTCONV_MULTIPLY(MmaF64, Value, "mma.m8n8k4.f64")
#else
  static __device__ __forceinline__ void multiply(C& c, const A& a, const B& b) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+d"(c[0]), "+d"(c[1])
                 : "d"(a[0]), "d"(b[0]));
  }
#endif
};
#undef FASTCONV_MULTIPLY

}  // namespace fastconv::FASTCONV_GPU
