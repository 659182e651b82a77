// One channel's rows as lanes along columns read them: widened, masked, zeros where the padding is.
#pragma once

#include "depthwise.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// A row of a strided tensor. A whole vector may be read past the row's end as long as it ends before `last`, the
// tensor's last element: those values are overwritten or never used.
template <class T>
struct PlaneRow {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>;
  const T* p;
  int64_t stride;
  const T* last;
  const T* mask = nullptr;
  int64_t mask_stride = 0;
  const T* mask_last = nullptr;

  A at(int64_t i) const {
    return Reader<T>{p, stride, 0, mask, mask_stride, 0}.at(i, 0);
  }
  Vec<A> lanes_at(int64_t i) const {
    return Reader<T>{p, 1, 0, mask, 1, 0}.lanes_at(i, 0);
  }

  bool contiguous() const { return stride == 1 && (!mask || mask_stride == 1); }

  // `count` neighbouring values to aligned vectors at dst, zeros after them in the last one.
  void copy(int64_t first, int64_t count, A* dst) const {
    for (int64_t i = 0; i < count; i += L) store(dst + i, up_to(first + i, count - i));
  }
  // The same for every second one, two rows of them at once; `even` has the first.
  void copy_pairs(int64_t first, int64_t count, A* even, A* odd) const {
    for (int64_t i = 0; 2 * i < count; i += L) {
      const int64_t left = count - 2 * i;
      const Vec<A> low = up_to(first + 2 * i, left), high = left > L ? up_to(first + 2 * i + L, left - L) : Vec<A>{};
      store(even + i, every_other<0>(low, high, std::make_index_sequence<L>{}));
      store(odd + i, every_other<1>(low, high, std::make_index_sequence<L>{}));
    }
  }

 private:
  // A vector of at most `count` values and zeros. `count` is at least 1.
  Vec<A> up_to(int64_t i, int64_t count) const {
    if (count >= L && contiguous()) return lanes_at(i);
    if (contiguous() && p + i + L - 1 <= last && (!mask || mask + i + L - 1 <= mask_last))
      return first_lanes(lanes_at(i), count);
    alignas(kVectorBytes) A values[L] = {};
    for (int64_t l = 0; l < smaller(L, count); ++l) values[l] = at(i + l);
    return load(values);
  }
  static Vec<A> first_lanes(Vec<A> v, int64_t count) {
    using Index = decltype(Vec<A>{} == Vec<A>{});
    Index lane;
    for (int l = 0; l < L; ++l) lane[l] = l;
    return lane < static_cast<decltype(lane[0] + 0)>(count) ? v : Vec<A>{};
  }
  template <int First, size_t... J>
  static Vec<A> every_other(Vec<A> a, Vec<A> b, std::index_sequence<J...>) {
    return __builtin_shufflevector(a, b, (2 * J + First)...);
  }
};

// The last element of a tensor.
template <class T>
inline const T* last_of(const void* data, const Sizes4& sizes, const Strides4& strides) {
  const T* p = static_cast<const T*>(data);
  for (int i = 0; i < 4; ++i) p += (sizes[i] - 1) * strides[i];
  return p;
}

template <class A>
inline void zero_vectors(A* from, const A* to) {
  for (; from < to; from += kLanes<A>) {
    store(from, Vec<A>{});
    asm volatile("" ::: );  // or GCC makes a call of memset of it, which costs more than the one or two vectors here
  }
}

// How columns lie in the buffer that plane_buffer() describes: source column lowest + d is position d / step of the row
// for remainder d % step, after `lead` values that align the tensor's first column.
struct PlaneColumns {
  const GatherAxis axis;
  const PlaneBuffer shape;
  int64_t lowest, begin, end;  // columns of the source that are read are [begin, end)
  int64_t lead = 0, first = 0, second = 0;  // places of column `begin` and of the one after it

  PlaneColumns(const GatherAxis& a, const Taps& taps, const PlaneBuffer& b, int64_t lanes) : axis(a), shape(b) {
    lowest = taps.count ? taps.d[0] : 0;
    const int64_t highest = taps.count ? taps.d[taps.count - 1] : 0;
    begin = larger(0, lowest);
    end = larger(begin, smaller(a.src, highest + (a.out - 1) * a.step + 1));
    if (a.step == 1) lead = -(begin - lowest) & (lanes - 1);
    first = smaller(place(begin), shape.pitch);
    second = place(begin + 1);
  }
  int64_t place(int64_t column) const {
    const int64_t d = column - lowest;
    return d % axis.step * shape.width + lead + d / axis.step;
  }

  template <class T>
  void fill(const PlaneRow<T>& row, Compute<T>* to) const {
    using A = Compute<T>;
    constexpr int L = kLanes<A>;
    const A* row_end = to + shape.pitch;
    const int64_t count = end - begin;
    if (axis.step == 1) {
      zero_vectors(to, to + first);
      if (count > 0) row.copy(begin, count, to + first);
      zero_vectors(to + first + ((count + L - 1) & -L), row_end);
      return;
    }
    zero_vectors(to, row_end);
    if (count <= 0) return;
    if (axis.step == 2 && shape.pitch == 2 * shape.width) {
      row.copy_pairs(begin, count, to + first, to + second);
    } else {
      for (int64_t column = begin; column < end; ++column)
        if ((column - lowest) % axis.step * shape.width < shape.pitch) to[place(column)] = row.at(column);
    }
  }
};

// Copies the rows [low, low + count) of one channel, zeros for those outside.
template <class T, class RowOf>
inline void fill_plane(const GatherAxis& rows, const PlaneColumns& columns, int64_t low, int64_t count, Compute<T>* to,
                       RowOf&& row_of) {
  for (int64_t i = 0; i < count; ++i, to += columns.shape.pitch) {
    if (low + i >= 0 && low + i < rows.src)
      columns.fill<T>(row_of(low + i), to);
    else
      zero_vectors(to, to + columns.shape.pitch);
  }
}

// Where each tap reads for output 0 of a row, from that row's first one in the buffer.
inline void plane_offsets(const Taps& rows, const Taps& cols, const PlaneColumns& columns, int64_t* offset) {
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t s = 0; s < cols.count; ++s)
      offset[r * cols.count + s] = (rows.d[r] - rows.d[0]) * columns.shape.pitch + columns.place(cols.d[s]);
}

}  // namespace
}  // namespace fastconv::cpu::FASTCONV_ISA
