// Every atom against its host model: in the emulator by the tests, on hardware as a program of its own (make atoms-check).
//
// The kernels place matrices in registers as the atoms' layouts say, run one instruction, and give back what they hold.
// The host compares with a plain matrix product, or with the layout itself. Values are small integers: sums are exact.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/atoms_copy.cuh"
#include "cuda/atoms_ldmatrix.cuh"
#include "cuda/atoms_mma.cuh"
#ifdef FASTCONV_SIMT
#include "simt/checker/checker.h"
#endif

namespace fastconv::FASTCONV_GPU {
namespace {

// Memory that kernels and the host both reach.
template <class T>
class Array {
 public:
  explicit Array(size_t n) : n_(n) {
#ifdef FASTCONV_SIMT
    p_ = static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
#else
    if (cudaMallocManaged(&p_, n * sizeof(T)) != cudaSuccess) p_ = nullptr;
#endif
    for (size_t i = 0; p_ && i < n; ++i) p_[i] = T{};
#ifdef FASTCONV_SIMT
    simt::register_buffer(p_, static_cast<int64_t>(n * sizeof(T)), "array", true, sizeof(T) < 4 ? sizeof(T) : 4);
#endif
  }
  ~Array() {
#ifdef FASTCONV_SIMT
    simt::forget_buffers();
    std::free(p_);
#else
    cudaFree(p_);
#endif
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* data() const { return p_; }
  T& operator[](size_t i) const { return p_[i]; }
  size_t size() const { return n_; }

 private:
  size_t n_;
  T* p_ = nullptr;
};

Status finish(Status launched) {
#ifndef FASTCONV_SIMT
  if (const cudaError_t error = cudaDeviceSynchronize(); launched && error != cudaSuccess)
    return Status::refuse(cudaGetErrorString(error));
#endif
  return launched;
}

std::string mismatch(const std::string& where, double found, double expected) {
  char text[160];
  std::snprintf(text, sizeof text, "%s is %g, expected %g", where.c_str(), found, expected);
  return text;
}

// --- mma.sync ------------------------------------------------------------------------------------------------------------

template <class T>
struct PutHalf {
  static __device__ void put(unsigned* registers, int i, float value) {
    const T narrow_value = narrow<T>(value);
    unsigned short bits;
    std::memcpy(&bits, &narrow_value, 2);
    registers[i / 2] |= static_cast<unsigned>(bits) << 16 * (i % 2);
  }
};
struct PutTf32 {
  static __device__ void put(unsigned* registers, int i, float value) { registers[i] = MmaTf32::to_tf32(value); }
};
struct PutF64 {
  static __device__ void put(double* fragment, int i, double value) { fragment[i] = value; }
};

template <class Atom, class Put, class Number>
__global__ void multiply_once(const Number* a, const Number* b, Number* c) {
  const int lane = static_cast<int>(threadIdx.x);
  typename Atom::A fa = {};
  typename Atom::B fb = {};
  typename Atom::C fc;
  for (int i = 0; i < Atom::kA; ++i) {
    const Coordinate at = Atom::a_at(lane, i);
    Put::put(fa, i, a[at.row * Atom::K + at.column]);
  }
  for (int i = 0; i < Atom::kB; ++i) {
    const Coordinate at = Atom::b_at(lane, i);
    Put::put(fb, i, b[at.row * Atom::N + at.column]);
  }
  for (int i = 0; i < Atom::kC; ++i) {
    const Coordinate at = Atom::c_at(lane, i);
    fc[i] = c[at.row * Atom::N + at.column];
  }
  Atom::multiply(fc, fa, fb);
  for (int i = 0; i < Atom::kC; ++i) {
    const Coordinate at = Atom::c_at(lane, i);
    c[at.row * Atom::N + at.column] = fc[i];
  }
}

template <class Atom, class Put, class Number>
std::string check_mma() {
  Array<Number> a(Atom::M * Atom::K), b(Atom::K * Atom::N), c(Atom::M * Atom::N);
  // No two rows, and no two columns, alike: an exchange of any shows.
  for (int m = 0; m < Atom::M; ++m)
    for (int k = 0; k < Atom::K; ++k) a[m * Atom::K + k] = Number((m * 5 + k * 3 + m * k) % 17 - 8);
  for (int k = 0; k < Atom::K; ++k)
    for (int n = 0; n < Atom::N; ++n) b[k * Atom::N + n] = Number((k * 7 + n * 11 + k * n) % 13 - 6);
  std::vector<Number> expected(c.size());
  for (int m = 0; m < Atom::M; ++m)
    for (int n = 0; n < Atom::N; ++n) {
      Number sum = c[m * Atom::N + n] = Number(m * Atom::N + n);
      for (int k = 0; k < Atom::K; ++k) sum += a[m * Atom::K + k] * b[k * Atom::N + n];
      expected[m * Atom::N + n] = sum;
    }
  const Status s = finish(launch("multiply_once", multiply_once<Atom, Put, Number>, dim3{1, 1, 1}, dim3{32, 1, 1}, 0,
                                 nullptr, static_cast<const Number*>(a.data()),
                                 static_cast<const Number*>(b.data()), c.data()));
  if (!s) return s.reason();
  for (size_t i = 0; i < c.size(); ++i)
    if (!(c[i] == expected[i]))
      return mismatch("C[" + std::to_string(i / Atom::N) + "][" + std::to_string(i % Atom::N) + "]", c[i], expected[i]);
  return "";
}

// --- ldmatrix and swizzles -------------------------------------------------------------------------------------------------

struct Rows {
  alignas(128) unsigned short v[32][64];  // of 128 bytes
};

// Four matrices of 8 rows; row r of matrix j is the j-th 16-byte chunk, swizzled, of shared row r.
template <int Matrices, bool Transposed>
__global__ void load_once(unsigned* out) {
  Rows& rows = dynamic_shared<Rows>();
  auto* bytes = reinterpret_cast<unsigned char*>(&rows);
  const unsigned lane = threadIdx.x;
  for (unsigned chunk = lane; chunk < 64; chunk += 32)
    for (unsigned e = 0; e < 8; ++e)
      *reinterpret_cast<unsigned short*>(bytes + swizzle<128>(chunk / 8 * 128 + chunk % 8 * 16) + 2 * e) =
          static_cast<unsigned short>(chunk % 8 * 64 + chunk / 8 * 8 + e);
  __syncwarp();
  unsigned registers[Matrices];
  LoadMatrices<Matrices, Transposed>::load(registers, bytes + swizzle<128>(lane % 8 * 128 + lane / 8 * 16));
  for (int j = 0; j < Matrices; ++j) out[lane * Matrices + j] = registers[j];
}

template <int Matrices, bool Transposed>
std::string check_ldmatrix() {
  Array<unsigned> out(32 * Matrices);
  const Status s = finish(launch("load_once", load_once<Matrices, Transposed>, dim3{1, 1, 1}, dim3{32, 1, 1},
                                 sizeof(Rows), nullptr, out.data()));
  if (!s) return s.reason();
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < Matrices; ++j)
      for (int half = 0; half < 2; ++half) {
        const Coordinate at = LoadMatrices<Matrices, Transposed>::element(lane, half);
        const unsigned found = out[lane * Matrices + j] >> 16 * half & 0xffff;
        const unsigned expected = static_cast<unsigned>(j * 64 + at.row * 8 + at.column);
        if (found != expected)
          return mismatch("lane " + std::to_string(lane) + ", register " + std::to_string(j) + ", half " +
                              std::to_string(half), found, expected);
      }
  return "";
}

// --- cp.async ----------------------------------------------------------------------------------------------------------------

struct Landing {
  alignas(16) unsigned char v[2][32 * 16];
};

// Odd lanes copy nothing but zeros. Two groups; the first must have landed when one is pending.
template <int Bytes>
__global__ void copy_once(const unsigned char* from, unsigned char* out) {
  Landing& landing = dynamic_shared<Landing>();
  const unsigned at = threadIdx.x * Bytes;
  CopyAsync<Bytes>::copy(landing.v[0] + at, from + at, threadIdx.x % 2 == 0);
  copy_async_commit();
  CopyAsync<Bytes>::copy(landing.v[1] + at, from + at, true);
  copy_async_commit();
  copy_async_wait<1>();
  __syncwarp();
  const unsigned other = (31 - threadIdx.x) * Bytes;
  for (int i = 0; i < Bytes; ++i) out[other + i] = landing.v[0][other + i];
  copy_async_wait<0>();
  __syncwarp();
  for (int i = 0; i < Bytes; ++i) out[32 * Bytes + other + i] = landing.v[1][other + i];
}

template <int Bytes>
std::string check_copy() {
  Array<unsigned char> from(32 * Bytes), out(64 * Bytes);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 7 + 1);
  const Status s = finish(launch("copy_once", copy_once<Bytes>, dim3{1, 1, 1}, dim3{32, 1, 1}, sizeof(Landing), nullptr,
                                 static_cast<const unsigned char*>(from.data()), out.data()));
  if (!s) return s.reason();
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t lane = i / Bytes;
    const unsigned expected = lane < 32 && lane % 2 ? 0 : from[i % from.size()];
    if (out[i] != expected) return mismatch("byte " + std::to_string(i), out[i], expected);
  }
  return "";
}

// --- shuffles and votes --------------------------------------------------------------------------------------------------------

__global__ void shuffle_once(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* mine = out + lane * 6;
  mine[0] = __shfl_sync(~0u, lane, lane * 5 % 32);
  mine[1] = __shfl_up_sync(~0u, lane, 3, 8);
  mine[2] = __shfl_down_sync(~0u, lane, 3, 16);
  mine[3] = __shfl_xor_sync(~0u, lane, 9);
  mine[4] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  mine[5] = __any_sync(~0u, lane == 31) * 2 + __all_sync(~0u, lane >= 0);
}

std::string check_shuffles() {
  Array<int> out(32 * 6);
  const Status s = finish(launch("shuffle_once", shuffle_once, dim3{1, 1, 1}, dim3{32, 1, 1}, 0, nullptr, out.data()));
  if (!s) return s.reason();
  unsigned thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane) {
    const int expected[6] = {lane * 5 % 32, lane % 8 < 3 ? lane : lane - 3, lane % 16 > 12 ? lane : lane + 3,
                             lane ^ 9, static_cast<int>(thirds), 3};
    for (int i = 0; i < 6; ++i)
      if (out[lane * 6 + i] != expected[i])
        return mismatch("lane " + std::to_string(lane) + ", operation " + std::to_string(i), out[lane * 6 + i],
                        expected[i]);
  }
  return "";
}

struct Check {
  const char* name;
  std::string (*run)();
};

const Check kChecks[] = {
    {"mma.m16n8k16.f16", check_mma<MmaHalf<f16>, PutHalf<f16>, float>},
    {"mma.m16n8k16.bf16", check_mma<MmaHalf<bf16>, PutHalf<bf16>, float>},
    {"mma.m16n8k8.tf32", check_mma<MmaTf32, PutTf32, float>},
    {"mma.m8n8k4.f64", check_mma<MmaF64, PutF64, double>},
    {"ldmatrix.x1", check_ldmatrix<1, false>},
    {"ldmatrix.x2", check_ldmatrix<2, false>},
    {"ldmatrix.x4", check_ldmatrix<4, false>},
    {"ldmatrix.x1.trans", check_ldmatrix<1, true>},
    {"ldmatrix.x2.trans", check_ldmatrix<2, true>},
    {"ldmatrix.x4.trans", check_ldmatrix<4, true>},
    {"cp.async.4", check_copy<4>},
    {"cp.async.8", check_copy<8>},
    {"cp.async.16", check_copy<16>},
    {"shuffles", check_shuffles},
};

}  // namespace

// "name: ok" or "name: what differs", a line each; the number of mismatches.
int check_atoms(std::string& report) {
  int wrong = 0;
  for (const Check& check : kChecks) {
    const std::string said = check.run();
    wrong += !said.empty();
    report += std::string(check.name) + ": " + (said.empty() ? "ok" : said) + "\n";
  }
  return wrong;
}

}  // namespace fastconv::FASTCONV_GPU

#ifdef FASTCONV_SIMT
extern "C" __attribute__((visibility("default"))) int fastconv_atoms(int eager, char* message, int64_t capacity) {
  fastconv::simt::settings().eager_copies = eager != 0;
  std::string report;
  const int wrong = fastconv::simulated::check_atoms(report);
  std::strncpy(message, report.c_str(), static_cast<size_t>(capacity) - 1);
  message[capacity - 1] = 0;
  return wrong;
}

// Where element i of fragment 'a', 'b' or 'c' of a lane lies in its matrix: row * 256 + column; -1 past the last.
extern "C" __attribute__((visibility("default"))) int fastconv_layout(const char* atom, char fragment, int lane, int i) {
  using namespace fastconv::simulated;
  const std::string name = atom;
  const auto place = [&](auto instruction) {
    using Atom = decltype(instruction);
    const int count = fragment == 'a' ? Atom::kA : fragment == 'b' ? Atom::kB : Atom::kC;
    if (i >= count) return -1;
    const Coordinate at = fragment == 'a' ? Atom::a_at(lane, i) : fragment == 'b' ? Atom::b_at(lane, i) : Atom::c_at(lane, i);
    return at.row * 256 + at.column;
  };
  if (name == "mma.m16n8k16") return place(Mma16{});
  if (name == "mma.m16n8k8.tf32") return place(MmaTf32{});
  return place(MmaF64{});
}
#else
int main() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::fprintf(stderr, "atoms-check: no CUDA device\n");
    return 2;
  }
  std::string report;
  const int wrong = fastconv::cuda::check_atoms(report);
  std::printf("%s, sm_%d%d\n%s%d mismatches\n", properties.name, properties.major, properties.minor, report.c_str(), wrong);
  return wrong != 0;
}
#endif
