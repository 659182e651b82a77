// Depthwise convolution with lanes along a row of one channel, forward and grad_input: NCHW.
//
// Per task (some rows of one channel): copy the rows that they read to a buffer with zeros for the padding, every
// second (third, ...) column apart where the stride is 2 (3, ...), so that every tap is a shifted vector; then sum
// tiles of 8 rows x 1 vector over the taps, whose weights are broadcast. Arithmetic intensity: 9 multiply-adds per 8
// bytes of memory at 3x3 fp32, so a large map is bound by memory. A smaller one is bound by loads: a shifted vector
// crosses cache lines and costs a cycle, so for windows of 3, 5 or 7 neighbouring rows each is loaded once for all rows
// of the tile that it belongs to, 30 loads instead of 72 for 8 x 9 products at 3x3.
#include "depthwise_plane.h"

namespace fastconv::cpu::FASTCONV_ISA {
namespace {

constexpr int kRows = 8;

template <class T>
struct Planes {
  using A = Compute<T>;
  static constexpr int L = kLanes<A>;

  const ConvProblem& p;
  const DepthwiseBlocks b;
  const ConvOperands& operands;
  const Gather g;
  const Taps rows, cols;
  int64_t* offset;  // of each tap in the buffer
  const bool forward = p.pass == Pass::forward;
  const Activated<A> activation{p};
  const int64_t multiplier = p.group_k(), sources = forward ? 1 : multiplier;
  const PlaneBuffer shape = plane_buffer(g, b.rows, sources, L);
  const PlaneColumns columns{g.cols, cols, shape, L};
  const T* src = static_cast<const T*>(forward ? operands.x : operands.y);
  const T* src_last = forward ? last_of<T>(src, p.x_sizes(), p.x_strides) : last_of<T>(src, p.y_sizes(), p.y_strides);
  const T* mask = !forward && p.has_aux() ? static_cast<const T*>(operands.aux) : nullptr;
  const T* mask_last = mask ? last_of<T>(mask, p.y_sizes(), p.aux_strides) : nullptr;

  // Fills `offset`, in the order in which weights are listed: [source][row][column].
  void list_offsets() const {
    for (int64_t u = 0; u < sources; ++u) {
      int64_t* own = offset + u * rows.count * cols.count;
      plane_offsets(rows, cols, columns, own);
      for (int64_t t = 0; t < rows.count * cols.count; ++t) own[t] += u * shape.rows * shape.pitch;
    }
  }

  // Neighbouring row taps share what they load: acc[m] is output row m, R the rows of the window, Step the stride.
  template <int M, int R, int Step>
  void sum_shared(const A* band, const A* weight, int64_t begin, int64_t end, Vec<A> (&acc)[M]) const {
    for (int64_t u = begin; u < end; ++u)
      for (int64_t s = 0; s < cols.count; ++s) {
        const int64_t first = u * R * cols.count + s;
        const A* x = band + offset[first];
        Vec<A> w[R];
#pragma GCC unroll 7
        for (int r = 0; r < R; ++r) {
          w[r] = Vec<A>{} + weight[first + r * cols.count];
          pin(w[r]);
        }
#pragma GCC unroll 24
        for (int row = 0; row < (M - 1) * Step + R; ++row) {
          Vec<A> value = load(x + row * shape.pitch);
          pin(value);
#pragma GCC unroll 7
          for (int r = 0; r < R; ++r)
            if (row >= r && (row - r) % Step == 0 && (row - r) / Step < M) acc[(row - r) / Step] += value * w[r];
        }
      }
  }

  // Over all sources, a few at a time: the rounding of a sum grows with the length of its chain.
  template <int M>
  void sum(const A* band, const A* weight, Vec<A> (&acc)[M]) const {
    constexpr int64_t kChainSources = 4;
    sum_some<M>(band, weight, 0, sources < kChainSources ? sources : kChainSources, acc);
    for (int64_t u = kChainSources; u < sources; u += kChainSources) {
      Vec<A> part[M];
      sum_some<M>(band, weight, u, u + kChainSources < sources ? u + kChainSources : sources, part);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m] += part[m];
    }
  }

  template <int M>
  void sum_some(const A* band, const A* weight, int64_t begin, int64_t end, Vec<A> (&acc)[M]) const {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = Vec<A>{};
    const bool neighbours = rows.d[rows.count - 1] - rows.d[0] == rows.count - 1;
    const int64_t step = g.rows.step;
    if (neighbours && step == 1 && rows.count == 3) return sum_shared<M, 3, 1>(band, weight, begin, end, acc);
    if (neighbours && step == 1 && rows.count == 5) return sum_shared<M, 5, 1>(band, weight, begin, end, acc);
    if (neighbours && step == 1 && rows.count == 7) return sum_shared<M, 7, 1>(band, weight, begin, end, acc);
    if (neighbours && step == 2 && rows.count == 3) return sum_shared<M, 3, 2>(band, weight, begin, end, acc);
    if (neighbours && step == 2 && rows.count == 5) return sum_shared<M, 5, 2>(band, weight, begin, end, acc);
    const int64_t taps = rows.count * cols.count, row = step * shape.pitch;
    for (int64_t t = begin * taps; t < end * taps; ++t) {
      const A* x = band + offset[t];
      const A w = weight[t];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m] += load(x + m * row) * w;
    }
  }

  struct Output {
    T* y;
    int64_t row, col;  // strides
    const T* residual;
    int64_t residual_row, residual_col;
    A scale, bias;
    int64_t end;  // a vector at element i * row + j may spill into the next rows up to here: they are written after it
  };

  // Scale, bias, residual, activation and narrowing of `count` values of output row i from column j on.
  void write(Vec<A> value, const Output& out, int64_t i, int64_t j, int64_t count) const {
    value = value * out.scale + out.bias;
    T* y = out.y + i * out.row + j * out.col;
    const T* residual = out.residual ? out.residual + i * out.residual_row + j * out.residual_col : nullptr;
    const bool vectors = (count == L || i * out.row + j + L <= out.end) && out.col == 1 &&
                         (!residual || out.residual_col == 1);
    if (residual && vectors) value += load_widened(residual);
    if (residual && !vectors)
      for (int64_t l = 0; l < count; ++l) value[l] += widen(residual[l * out.residual_col]);
    value = activation.in_registers(value);
    if (activation.in_memory()) {
      alignas(kVectorBytes) A run[L];
      store(run, value);
      activation.apply(run, L);
      value = load(run);
    }
    if constexpr (std::is_same_v<T, A>) {
      if (vectors) return store(y, value);
    }
    A values[L];
    store(values, value);
    if (vectors) {
      for (int l = 0; l < L; ++l) y[l] = narrow<T>(values[l]);
    } else {
      for (int64_t l = 0; l < count; ++l) y[l * out.col] = narrow<T>(values[l]);
    }
  }

  int64_t staging_pitch() const { return div_up(g.cols.out, L) * L; }

  // Output rows [row0, row1) of one channel (in the forward pass of all its filters). If there is a `staging`, they go
  // there, staging_pitch() apart, in place of the output.
  void band(A* buffer, A* weight, int64_t n, int64_t channel, int64_t row0, int64_t row1, T* staging) const {
    const bool any = rows.count > 0 && cols.count > 0;
    if (any) {
      const int64_t low = row0 * g.rows.step + rows.d[0];
      const int64_t high = (row1 - 1) * g.rows.step + rows.d[rows.count - 1];
      for (int64_t u = 0; u < sources; ++u) {
        const int64_t from = channel * sources + u;
        PlaneRows<T> source{src + n * g.src[0] + from * g.src[1], g.src[2], g.src[3], src_last};
        if (mask) {
          source.mask = mask + n * g.mask[0] + from * g.mask[1];
          source.mask_row_stride = g.mask[2];
          source.mask_stride = g.mask[3];
          source.mask_last = mask_last;
          source.gradient = OutputGradient<A>(p);
        }
        fill_plane<T>(g.rows.src, columns, low, high + 1 - low, buffer + u * shape.rows * shape.pitch, source);
      }
    }
    for (int64_t f = 0; f < (forward ? multiplier : 1); ++f) {
      A* to = weight;
      for (int64_t u = 0; u < sources; ++u) {
        const Strides4& ws = p.weight_strides;
        const T* from = static_cast<const T*>(operands.weight) + (channel * multiplier + f + u) * ws[0];
        for (int64_t r = 0; r < rows.count; ++r)
          for (int64_t s = 0; s < cols.count; ++s) *to++ = widen(from[rows.index[r] * ws[2] + cols.index[s] * ws[3]]);
      }
      rows_of_filter(buffer, weight, any, n, forward ? channel * multiplier + f : channel, row0, row1, staging);
    }
  }

  void rows_of_filter(const A* buffer, const A* weight, bool any, int64_t n, int64_t to, int64_t row0,
                      int64_t row1, T* staging) const {
    const Strides4 &ds = g.dst, &rs = g.residual;
    Output out{static_cast<T*>(forward ? operands.y : operands.x) + n * ds[0] + to * ds[1] + g.rows.out_start * ds[2] +
                   g.cols.out_start * ds[3],
               g.rows.out_step * ds[2],
               g.cols.out_step * ds[3],
               nullptr,
               rs[2],
               rs[3],
               A(1),
               A(0),
               0};
    if (forward && p.residual) out.residual = static_cast<const T*>(operands.aux) + n * rs[0] + to * rs[1];
    if (p.scale) out.scale = static_cast<const A*>(operands.scale)[to];
    if (p.bias) out.bias = widen(static_cast<const T*>(operands.bias)[to]);
    const int64_t width = g.cols.out;
    if (out.row == width && out.col == 1 && (!out.residual || out.residual_row == width)) out.end = row1 * width;
    if (staging) {
      out.row = staging_pitch();
      out.col = 1;
      out.y = staging - row0 * out.row;
      out.end = row1 * out.row;
    }
    in_overlapping_pieces<kRows>(row0, row0, row1, [&](auto pieces, int64_t i) {
      constexpr int M = decltype(pieces)::value;
      for (int64_t j = 0; j < width; j += L) {
        // The last vector of a row that has more than one overlaps its neighbour: the same values written again.
        const int64_t at = j + L > width && width > L ? width - L : j;
        Vec<A> acc[M];
        if (any)
          sum<M>(buffer + (i - row0) * g.rows.step * shape.pitch + at, weight, acc);
        else
          for (int m = 0; m < M; ++m) acc[m] = Vec<A>{};
        const bool plain = std::is_same_v<T, A> && out.col == 1 && !out.residual && !activation.in_memory() &&
                           (at + L <= width || (i + M - 1) * out.row + at + L <= out.end);
        if constexpr (std::is_same_v<T, A>) {
          if (plain) {
            T* y = out.y + i * out.row + at;
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
              acc[m] = acc[m] * out.scale + out.bias;
              store(y + m * out.row, activation.in_registers(acc[m]));
            }
            continue;
          }
        }
        for (int m = 0; m < M; ++m) write(acc[m], out, i + m, at, smaller(L, width - at));
      }
    });
  }
};

template <class T>
Planes<T> prepare(const ConvPlan& plan, const ConvOperands& operands, int64_t phase, Arena& arena) {
  const DepthwiseBlocks b = depthwise_blocks(plan);
  const Gather g = depthwise_gather(plan.problem, phase);
  const Taps rows(g.rows, arena), cols(g.cols, arena);
  const Planes<T> planes{plan.problem, b, operands, g, rows, cols, arena.take<int64_t>(b.taps)};
  planes.list_offsets();
  return planes;
}

// to[2 j] = even[j], to[2 j + 1] = odd[j]
template <class T>
void merge(const T* __restrict even, const T* __restrict odd, int64_t evens, int64_t odds, T* __restrict to,
           int64_t stride) {
  if (stride == 1)
    for (int64_t j = 0; j < odds; ++j) {
      to[2 * j] = even[j];
      to[2 * j + 1] = odd[j];
    }
  else
    for (int64_t j = 0; j < odds; ++j) {
      to[2 * j * stride] = even[j];
      to[(2 * j + 1) * stride] = odd[j];
    }
  if (evens > odds) to[2 * odds * stride] = even[odds];
}

// One phase, or the even columns and, with `odd`, those of the next phase.
template <class T>
void run_phase(const ConvPlan& plan, const ConvOperands& operands, const Planes<T>& planes, const Planes<T>* odd,
               const Arena& arena, const Threads& threads) {
  using A = Compute<T>;
  const ConvProblem& p = plan.problem;
  const Gather& g = planes.g;
  const DepthwiseBlocks& b = planes.b;
  if (g.rows.out <= 0 || g.cols.out <= 0) return;
  const int64_t buffer_values = (odd ? 2 : 1) * b.source_values;
  for (int thread = 0; thread < threads.count; ++thread)  // the padding is zero for good, see fill_plane()
    zero(arena.slice(thread, b.thread_bytes).take<A>(buffer_values), buffer_values);
  const int64_t bands = div_up(g.rows.out, b.rows);
  parallel_tasks(threads, p.n * p.c * bands, [&](int thread, int64_t task) {
    const int64_t row0 = task % bands * b.rows, n = task / bands / p.c, channel = task / bands % p.c;
    const int64_t row1 = smaller(row0 + b.rows, g.rows.out);
    Arena own = arena.slice(thread, b.thread_bytes);
    A* buffer = own.take<A>(buffer_values);
    A* weight = own.take<A>(b.taps);
    if (!odd) return planes.band(buffer, weight, n, channel, row0, row1, nullptr);
    T* even_rows = own.take<T>(b.output_values);
    T* odd_rows = own.take<T>(b.output_values);
    planes.band(buffer, weight, n, channel, row0, row1, even_rows);
    odd->band(buffer + b.source_values, weight, n, channel, row0, row1, odd_rows);
    const Strides4& ds = g.dst;
    T* x = static_cast<T*>(operands.x) + n * ds[0] + channel * ds[1] + g.rows.out_start * ds[2];
    for (int64_t i = row0; i < row1; ++i)
      merge(even_rows + (i - row0) * planes.staging_pitch(), odd_rows + (i - row0) * odd->staging_pitch(), g.cols.out,
            odd->g.cols.out, x + i * g.rows.out_step * ds[2], ds[3]);
  });
}

template <class T>
void run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  const ConvProblem& p = plan.problem;
  Threads threads = exec.threads;
  threads.count = static_cast<int>(smaller(threads.count, plan.threads));
  // grad_input with a stride of 2 has even and odd columns as two phases. They are computed one after the other for
  // some rows and then put together: single values written at a distance would cost as much as the sums.
  const bool pairs = p.pass == Pass::grad_input && p.stride_w == 2 && p.w > 1;
  for (int64_t phase = 0; phase < gather_phases(p); phase += pairs ? 2 : 1) {
    Arena arena(workspace);
    const Planes<T> planes = prepare<T>(plan, operands, phase, arena);
    if (pairs) {
      const Planes<T> odd = prepare<T>(plan, operands, phase + 1, arena);
      run_phase(plan, operands, planes, &odd, arena, threads);
    } else {
      run_phase<T>(plan, operands, planes, nullptr, arena, threads);
    }
  }
}

}  // namespace

Status depthwise_planes(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  with_float(plan.problem.dtype, [&](auto v) { run<decltype(v)>(plan, operands, workspace, exec); });
  return {};
}

}  // namespace fastconv::cpu::FASTCONV_ISA
