// Runs of cache lines to prefetch while a kernel computes, and vectors of which only a part exists.
#pragma once

#include "numeric.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int64_t kLineBytes = 64;

// Into the second-level cache: the first level is busy with the kernel's own operands.
inline void prefetch_read(const char* line) { __builtin_prefetch(line, 0, 2); }
// For ownership, so that the store that follows finds the line. Every x86-64 executes prefetchw (old ones as a no-op).
inline void prefetch_write(const char* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw (%0)" ::"r"(line));
#else
  __builtin_prefetch(line, 1, 2);
#endif
}

// `count` lines at a fixed distance; a step of 0 repeats one line, which costs nothing.
struct LineRun {
  const char* line;
  int64_t step;
  int64_t count;
};

// The lines of a matrix of rows `pitch` bytes apart, `lines` each, in runs down the rows or along them.
struct RowLines {
  const char* base = nullptr;
  int64_t pitch = 0, rows = 0, lines = 0, at = 0;
  int64_t count() const { return rows * lines; }
  LineRun down(int64_t most) {
    if (at >= count()) return {base, 0, 0};
    const int64_t row = at % rows;
    const LineRun run{base + at / rows * kLineBytes + row * pitch, pitch, most < rows - row ? most : rows - row};
    at += run.count;
    return run;
  }
  LineRun along(int64_t most) {
    if (at >= count() || most <= 0) return {base, 0, 0};
    const int64_t line = at % lines;
    const LineRun run{base + at / lines * pitch + line * kLineBytes, kLineBytes,
                      most < lines - line ? most : lines - line};
    at += run.count;
    return run;
  }
};

inline void prefetch(const LineRun& run) {
  for (int64_t i = 0; i < run.count; ++i) prefetch_read(run.line + i * run.step);
}
// The next `most` lines, along the rows.
inline void prefetch(RowLines& lines, int64_t most) {
  while (most > 0) {
    const LineRun run = lines.along(most);
    if (run.count == 0) return;
    prefetch(run);
    most -= run.count;
  }
}

// An aligned store past the caches, for results larger than they are: saves reading the lines first. The thread that
// made such stores calls stream_end() before others may read them.
inline void store_stream(float* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#else
  store(p, v);
#endif
}
inline void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first `count` < lanes values; the others read as zero and are not touched.
inline Vec<float> load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  return reinterpret_cast<Vec<float>>(_mm256_maskload_ps(p, mask));
#else
  Vec<float> v{};
  for (int64_t l = 0; l < count; ++l) v[l] = p[l];
  return v;
#endif
}
inline void store_part(float* p, Vec<float> v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  _mm256_maskstore_ps(p, mask, reinterpret_cast<__m256>(v));
#else
  for (int64_t l = 0; l < count; ++l) p[l] = v[l];
#endif
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
