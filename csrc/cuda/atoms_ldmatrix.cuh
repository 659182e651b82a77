// ldmatrix: up to four 8x8 matrices of 16-bit elements from shared memory into the fragments of mma.sync
// (PTX ISA 9.7.14.5.15, sm_75 on). Rows are 16 bytes, anywhere in shared memory, aligned to 16.
#pragma once

#include "atoms_layout.cuh"

namespace fastconv::FASTCONV_GPU {

// Lane l gives the address of row l % 8 of matrix l / 8; lanes beyond 8 * Matrices - 1 are ignored. Register j of lane l
// then holds two elements of matrix j, at element(l, 0) and element(l, 1).
template <int Matrices, bool Transposed = false>
struct LoadMatrices {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);

  static __host__ __device__ constexpr Coordinate element(int lane, int half) {
    const int row = lane / 4, column = lane % 4 * 2 + half;
    return Transposed ? Coordinate{column, row} : Coordinate{row, column};
  }

#ifdef FASTCONV_SIMT
  static __forceinline__ void load(unsigned (&registers)[Matrices], const void* row,
                                   simt::Where where = simt::Where::here()) {
    struct Lane {
      const void* row;
      unsigned* registers;
      simt::Where where;
      unsigned short values[8];
    } mine{row, registers, where, {}};
    if (simt::lane() < 8 * Matrices) simt::read_row(mine.values, row);
    simt::meet_warp(
        ~0u, "ldmatrix", &mine,
        [](void* const* lanes, unsigned mask) {
          const auto lane = [&](int l) -> Lane& { return *static_cast<Lane*>(lanes[l]); };
          if (mask != ~0u) simt::fail("ldmatrix needs all 32 lanes", lane(__builtin_ctz(mask)).where);
          simt::count(Transposed ? "ldmatrix.trans" : "ldmatrix");
          for (int j = 0; j < Matrices; ++j)
            for (int r = 0; r < 8; ++r)
              if (reinterpret_cast<uintptr_t>(lane(8 * j + r).row) % 16)
                simt::fail("ldmatrix from an address that is not aligned to 16 bytes", lane(8 * j + r).where);
          for (int j = 0; j < Matrices; ++j)
            for (int l = 0; l < 32; ++l) {
              unsigned short halves[2];
              for (int half = 0; half < 2; ++half) {
                const Coordinate at = element(l, half);
                halves[half] = lane(8 * j + at.row).values[at.column];
              }
              lane(l).registers[j] = pack_halves(halves[0], halves[1]);
            }
        },
        where);
  }
#else
  static __device__ __forceinline__ void load(unsigned (&r)[Matrices], const void* row) {
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (Matrices == 1 && !Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(from) : "memory");
    else if constexpr (Matrices == 1)
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(from) : "memory");
    else if constexpr (Matrices == 2 && !Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1]) : "r"(from) : "memory");
    else if constexpr (Matrices == 2)
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                   : "=r"(r[0]), "=r"(r[1]) : "r"(from) : "memory");
    else if constexpr (!Transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
  }
#endif
};

}  // namespace fastconv::FASTCONV_GPU
