// The checked library's C interface, for tests: a row of the table on raw memory, every access checked.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "../../core/operands.h"
#include "../../cuda/direct.cuh"
#include "../../cuda/rows.h"
#include "checker.h"

namespace fastconv::simt {
namespace {

enum Result { kDone = 0, kFailed = 1, kRefused = 2 };

void announce(const void* p, int64_t bytes, const char* name, bool written, int64_t element) {
  register_buffer(p, bytes, name, written, static_cast<int>(element < 4 ? element : 4));
}

template <class Problem, class Operands, class Plan>
Result run(const Problem& p, const Operands& o, Status (*supports)(const Problem&),
           void (*plan_for)(const Problem&, int, Plan&),
           Status (*run_plan)(const Plan&, const Operands&, void*, const Execution&), std::string& message) {
  Status status = supports(p);
  if (!status) {
    message = status.reason();
    return kRefused;
  }
  Plan plan;
  plan.problem = p;
  plan_for(p, 1, plan);
  const auto bytes = static_cast<size_t>((plan.workspace_bytes + 255) / 256 * 256);
  void* workspace = std::aligned_alloc(256, bytes ? bytes : 256);
  if (!workspace) throw std::bad_alloc();
  std::memset(workspace, 0xFF, bytes);
  Operands operands = o;
  visit_operands(p, operands, [](const char* name, const void* data, int64_t bytes, int64_t element, bool read) {
    announce(data, bytes, name, read, element);
  });
  announce(workspace, plan.workspace_bytes, "workspace", false, size_of(p.dtype));
  status = run_plan(plan, o, workspace, {});
  std::free(workspace);
  forget_buffers();
  message = status.reason();
  return status ? kDone : kFailed;
}

using namespace fastconv::simulated;

// The forms of `direct`, of which its plan chooses one by cost.
template <DirectForm form>
Status form_supports(const ConvProblem& p) {
  ConvPlan plan;
  return direct_plan_form(p, form, plan) ? Status() : Status::refuse("this form does not take the problem");
}
template <DirectForm form>
void form_plan(const ConvProblem& p, int, ConvPlan& plan) {
  direct_plan_form(p, form, plan);
}

// pointers: x, weight, y, bias, scale, aux, grad_bias or x, y, offsets, input, output.
Result run_row(const std::string& problem, const std::string& row, void* const* q, std::string& message) {
#define FASTCONV_CONV_ROW(...)
#define FASTCONV_POOL_ROW(...)
#define FASTCONV_GPU_CONV_ROW(name, passes, dtypes, min_arch, summary, source, entry)                          \
  if (row == #name)                                                                                            \
    return run<ConvProblem, ConvOperands, ConvPlan>(parse_conv(problem), {q[0], q[1], q[2], q[3], q[4], q[5], q[6]}, \
                                                    entry##_supports, entry##_plan, entry##_run, message);
#define FASTCONV_GPU_POOL_ROW(name, passes, dtypes, min_arch, summary, source, entry)                           \
  if (row == #name)                                                                                             \
    return run<PoolProblem, PoolOperands, PoolPlan>(parse_pool(problem), {q[0], q[1], q[2], q[3], q[4]},                \
                                                    entry##_supports, entry##_plan, entry##_run, message);
#include "../../core/algorithms.inc"
#define FASTCONV_FORM(form)                                                                                          \
  if (row == "direct:" #form)                                                                                        \
    return run<ConvProblem, ConvOperands, ConvPlan>(parse_conv(problem), {q[0], q[1], q[2], q[3], q[4], q[5], q[6]}, \
                                                    form_supports<DirectForm::form>, form_plan<DirectForm::form>, \
                                                    direct_run, message);
  FASTCONV_FORM(any)
  FASTCONV_FORM(tiled)
  FASTCONV_FORM(weight)
#undef FASTCONV_FORM
  message = "no row of that name";
  return kFailed;
}

// For addr2line: a return address as an offset into this library, of the call before it.
uintptr_t offset_of(const void* instruction) {
  Dl_info info;
  if (!dladdr(instruction, &info)) return 0;
  return reinterpret_cast<uintptr_t>(instruction) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
}

std::string counted_text;

}  // namespace
}  // namespace fastconv::simt

#define FASTCONV_API extern "C" __attribute__((visibility("default")))

// 0: done; 1: failed, 2: refused, `message` (of `capacity` bytes) says why.
FASTCONV_API int fastconv_run(const char* problem, const char* row, void* const* pointers, uint64_t seed, int eager,
                              char* message, int64_t capacity) {
  using namespace fastconv::simt;
  std::string said;
  int result = kFailed;
  settings().seed = seed;
  settings().eager_copies = eager != 0;
  try {
    result = run_row(problem, row, pointers, said);
  } catch (const std::exception& error) {
    forget_buffers();
    said = error.what();
  }
  std::strncpy(message, said.c_str(), static_cast<size_t>(capacity) - 1);
  message[capacity - 1] = 0;
  return result;
}

// Positions in the plane of max-pooling's window offsets, for tests of pool_indices; the message, "" if all is well.
FASTCONV_API const char* fastconv_indices(const char* problem, const void* offsets, int64_t* indices) {
  using namespace fastconv;
  static std::string said;
  try {
    const PoolProblem p = parse_pool(problem);
    const int64_t outputs = p.n * p.c * p.p * p.q;
    simt::register_buffer(offsets, outputs * p.offset_bytes, "offsets", true, p.offset_bytes);
    simt::register_buffer(indices, outputs * 8, "indices", false, 4);
    said = simulated::pool_indices(p, offsets, indices, nullptr).reason();
  } catch (const std::exception& error) {
    said = error.what();
  }
  simt::forget_buffers();
  return said.c_str();
}

FASTCONV_API void fastconv_count(int on) { fastconv::simt::count_traffic(on != 0); }

// Lines of "access <offset> <shared> <write> <bytes of a lane> <requests> <lanes> <distinct bytes> <units> <minimum>" and
// "atom <count> <name>", see checker.h. Valid until the next call.
FASTCONV_API const char* fastconv_counted() {
  using namespace fastconv::simt;
  counted_text.clear();
  for (const Traffic& t : traffic()) {
    counted_text += "access";
    for (int64_t v : {static_cast<int64_t>(offset_of(t.instruction)), int64_t{t.shared}, int64_t{t.write},
                      int64_t{t.access_bytes}, t.requests, t.lanes, t.bytes, t.units, t.minimum})
      counted_text += " " + std::to_string(v);
    counted_text += "\n";
  }
  for (const auto& [name, count] : atoms()) counted_text += "atom " + std::to_string(count) + " " + name + "\n";
  return counted_text.c_str();
}
