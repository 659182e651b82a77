// One channel's rows as lanes along columns read them: widened, masked, zeros where the padding is.
#pragma once

#include "depthwise.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

// The rows of one channel of a strided tensor. A whole vector may be read past a row's end as long as it ends before
// `last`, the tensor's last element: what it read too much is dropped.
template <class T>
struct PlaneRows {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>;
  const T* p;
  int64_t row_stride, stride;
  const T* last;
  const T* mask = nullptr;
  int64_t mask_row_stride = 0, mask_stride = 0;
  const T* mask_last = nullptr;
  OutputGradient<A> gradient{};

  bool contiguous() const { return stride == 1 && (!mask || mask_stride == 1); }
  A at(int64_t row, int64_t i) const {
    return Reader<T>{p, row_stride, stride, mask, mask_row_stride, mask_stride, gradient}.at(row, i);
  }
  Vec<A> lanes_at(int64_t row, int64_t i) const {
    return Reader<T>{p, row_stride, 1, mask, mask_row_stride, 1, gradient}.lanes_at(row, i);
  }
  // A vector of `count` values, zeros after them.
  Vec<A> some_lanes_at(int64_t row, int64_t i, int64_t count) const {
    const int64_t end = row * row_stride + i + L - 1, mask_end = row * mask_row_stride + i + L - 1;
    if (contiguous() && p + end <= last && (!mask || mask + mask_end <= mask_last))
      return first_lanes(lanes_at(row, i), count);
    const T* from_mask = mask ? mask + row * mask_row_stride + i * mask_stride : nullptr;
    return one_by_one({p + row * row_stride + i * stride, stride, 0, from_mask, mask_stride, 0, gradient}, count);
  }
  // At most `count` of them.
  Vec<A> up_to(int64_t row, int64_t i, int64_t count) const {
    return count >= L && contiguous() ? lanes_at(row, i) : some_lanes_at(row, i, smaller(L, count));
  }

 private:
  // Not inline: GCC would keep the addresses of all L values ready in the loops around it.
  __attribute__((noinline)) static Vec<A> one_by_one(Reader<T> from, int64_t count) {
    alignas(kVectorBytes) A values[L] = {};
    for (int64_t l = 0; l < count; ++l) values[l] = from.at(l, 0);
    return load(values);
  }
  static Vec<A> first_lanes(Vec<A> v, int64_t count) {
    using Index = decltype(Vec<A>{} == Vec<A>{});
    using Lane = decltype(Index{}[0] + 0);
    return lane_numbers<Index>(std::make_index_sequence<L>{}) < static_cast<Lane>(count) ? v : Vec<A>{};
  }
  template <class Index, size_t... J>
  static Index lane_numbers(std::index_sequence<J...>) {
    return Index{J...};
  }
};

// Every second one of 2 L values.
template <int First, class V, size_t... J>
inline V every_other(V a, V b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, (2 * J + First)...);
}

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
    asm volatile("");  // or GCC makes it a call of memset, which costs more than the few vectors of a row
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
};

// Copies the rows [low, low + count) of one channel, zeros for those outside. Only where the tensor's columns belong is
// written: the rest of `to` is zero from the start and stays so. Arguments by value: a store may alias whatever GCC
// cannot prove its own.
template <class T>
inline void fill_plane(const int64_t height, const PlaneColumns columns, int64_t low, int64_t count, Compute<T>* to,
                       const PlaneRows<T> rows) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const int64_t step = columns.axis.step, pitch = columns.shape.pitch, width = columns.shape.width;
  const int64_t begin = columns.begin, columns_read = columns.end - columns.begin, first = columns.first;
  const int64_t whole = columns_read / L * L, rest = columns_read - whole, last = low + count;
  const bool contiguous = rows.contiguous();
  for (; low < last; ++low, to += pitch) {
    if (low < 0 || low >= height || columns_read <= 0) {
      zero_vectors(to, to + pitch);
    } else if (step == 1) {
      A* dst = to + first;
      if (contiguous)
        for (int64_t i = 0; i < whole; i += L) store(dst + i, rows.lanes_at(low, begin + i));
      else
        for (int64_t i = 0; i < whole; ++i) dst[i] = rows.at(low, begin + i);
      dst += whole;
      if (rest) store(dst, rows.some_lanes_at(low, begin + whole, rest));
    } else if (step == 2 && pitch == 2 * width) {
      A *even = to + first, *odd = to + columns.second;
      int64_t i = 0;
      const auto turn = [&](Vec<A> a, Vec<A> b) {
        store(even + i / 2, every_other<0>(a, b, std::make_index_sequence<L>{}));
        store(odd + i / 2, every_other<1>(a, b, std::make_index_sequence<L>{}));
      };
      if (contiguous)
        for (; i + 2 * L <= columns_read; i += 2 * L)
          turn(rows.lanes_at(low, begin + i), rows.lanes_at(low, begin + i + L));
      for (; i < columns_read; i += 2 * L) {
        const int64_t left = columns_read - i;
        turn(rows.up_to(low, begin + i, left), left > L ? rows.up_to(low, begin + i + L, left - L) : Vec<A>{});
      }
    } else {
      for (int64_t column = begin; column < columns.end; ++column)
        if ((column - columns.lowest) % step * width < pitch) to[columns.place(column)] = rows.at(low, column);
    }
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
