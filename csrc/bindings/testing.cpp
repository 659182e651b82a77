// One row of the table on one problem, in memory that the caller laid out: any strides, guarded borders, a workspace
// full of NaN. The operators allocate dense results and choose rows themselves, so tests of kernels come in here.
#include "testing.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../core/operands.h"
#include "../core/selector.h"
#include "../cpu/processor.h"
#include "../cpu/winograd_transforms.h"
#ifdef FASTCONV_WITH_CUDA
#include "cuda_testing.h"
#endif

namespace py = pybind11;

namespace fastconv::bindings {
namespace {

constexpr int64_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;

// Poisoned memory (all ones is NaN in every floating type) between two guard zones.
class GuardedMemory {
 public:
  explicit GuardedMemory(int64_t bytes) : bytes_(bytes) {
    const int64_t total = (bytes + 2 * kGuard + 63) / 64 * 64;
    memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, static_cast<size_t>(total))));
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), kGuardByte, static_cast<size_t>(total));
    std::memset(memory_.get() + kGuard, 0xFF, static_cast<size_t>(bytes));
  }
  void* data() { return memory_.get() + kGuard; }
  bool intact() const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (memory_.get()[i] != kGuardByte || memory_.get()[kGuard + bytes_ + i] != kGuardByte) return false;
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  int64_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

Execution with_own_threads(int threads) {
  Execution e;
  e.threads.count = threads;
  e.threads.launch = [](int count, void (*body)(int, void*), void* data) {
    std::vector<std::thread> pool;
    for (int i = 1; i < count; ++i) pool.emplace_back(body, i, data);
    body(0, data);
    for (std::thread& t : pool) t.join();
  };
  return e;
}

template <class Row>
const Row& find_row(const std::vector<Row>& rows, const std::string& name, Device device) {
  for (const Row& row : rows)
    if (name == row.name && row.device == device) return row;
  throw std::invalid_argument("fastconv: no row '" + name + "' of device " + fastconv::name(device));
}

// The row on a GPU: operands and workspace are copied there and back, guard zones and poison included.
template <class Plan, class Operands>
void run_on_gpu(const Plan& plan, Operands operands, GuardedMemory& workspace) {
#ifdef FASTCONV_WITH_CUDA
  DeviceCopies copies;
  static_assert(DeviceCopies::kGuard <= kGuard);
  visit_operands(plan.problem, operands, [&](const char*, auto*& data, int64_t bytes, int64_t, bool) {
    data = copies.copy(const_cast<void*>(static_cast<const void*>(data)), bytes);
  });
  void* memory = copies.copy(workspace.data(), plan.workspace_bytes);
  const Status status = plan.row->run(plan, operands, memory, {});
  if (!status) throw std::runtime_error(status.reason());
  copies.write_back();
#else
  (void)plan, (void)operands, (void)workspace;
#endif
}

template <class Problem, class Row, class Operands, class BeforeRun>
void run(const Row& row, const Problem& problem, int threads, const Operands& operands, BeforeRun&& before_run) {
  if (const Status status = supports(row, problem, row.device); !status) throw Refusal{status.reason()};
  PlanOf<Problem, Row> plan;
  plan.problem = problem;
  plan.row = &row;
  plan.threads = threads;
  row.plan(problem, threads, plan);
  GuardedMemory workspace(plan.workspace_bytes);
  if (row.device == Device::cuda) {
    run_on_gpu(plan, operands, workspace);
  } else {
    Execution exec = with_own_threads(threads);
    [[maybe_unused]] const auto kept = before_run(plan, exec);
    const Status status = row.run(plan, operands, workspace.data(), exec);
    if (!status) throw std::runtime_error(status.reason());
  }
  if (!workspace.intact()) throw std::runtime_error("wrote past its workspace of " +
                                                    std::to_string(plan.workspace_bytes) + " bytes");
}

void* pointer(const py::dict& addresses, const char* name) {
  return addresses.contains(name) ? reinterpret_cast<void*>(addresses[name].cast<uintptr_t>()) : nullptr;
}

void run_row(const std::string& text, const std::string& row, const py::dict& addresses, int threads, bool prepacked,
             const std::string& on) {
  const Device device = on == "cuda" ? Device::cuda : on == "simulated" ? Device::simulated : Device::cpu;
  if (device == Device::cpu && cpu::processor().other_isa) throw std::runtime_error("fastconv: plans are for another ISA");
  if (text.rfind("conv ", 0) == 0) {
    ConvOperands o{pointer(addresses, "x"),     pointer(addresses, "weight"), pointer(addresses, "y"),
                   pointer(addresses, "bias"),  pointer(addresses, "scale"),  pointer(addresses, "aux"),
                   pointer(addresses, "grad_bias")};
    const ConvProblem problem = parse_conv(text);
    const ConvRow& chosen = find_row(conv_rows(), row, device);
    py::gil_scoped_release release;
    run(chosen, problem, threads, o, [&](const ConvPlan& plan, Execution& exec) {
      std::unique_ptr<GuardedMemory> filter;
      if (prepacked && chosen.prepack && plan.prepack_bytes > 0) {
        filter = std::make_unique<GuardedMemory>(plan.prepack_bytes);
        if (const Status s = chosen.prepack(plan, o, filter->data(), exec); !s) throw std::runtime_error(s.reason());
        if (!filter->intact()) throw std::runtime_error("prepack wrote past its memory");
        exec.prepacked = filter->data();
      }
      return filter;
    });
  } else {
    PoolOperands o{pointer(addresses, "x"), pointer(addresses, "y"), pointer(addresses, "offsets"),
                   pointer(addresses, "input"), pointer(addresses, "output")};
    const PoolProblem problem = parse_pool(text);
    const PoolRow& chosen = find_row(pool_rows(), row, device);
    py::gil_scoped_release release;
    run(chosen, problem, threads, o, [](const PoolPlan&, Execution&) { return 0; });
  }
}

template <int Rows, int Columns>
py::list nested(const double (&matrix)[Rows][Columns]) {
  py::list rows;
  for (const auto& row : matrix) {
    py::list values;
    for (const double v : row) values.append(v);
    rows.append(values);
  }
  return rows;
}

py::list winograd_forms() {
  py::list forms;
#define FASTCONV_FORM(outputs, taps)                                             \
  {                                                                              \
    static constexpr auto f = cpu::winograd::matrices<outputs, taps>();          \
    forms.append(py::make_tuple(outputs, taps, nested(f.a), nested(f.g), nested(f.b))); \
  }
  FASTCONV_WINOGRAD_FORMS(FASTCONV_FORM)
#undef FASTCONV_FORM
  return forms;
}

py::dict processor() {
  const cpu::Processor& p = cpu::processor();
  return py::dict(py::arg("multiply_adds") = p.multiply_adds, py::arg("second_level") = p.second_level,
                  py::arg("always_fresh") = p.always_fresh,
                  py::arg("other_isa") = p.other_isa ? py::cast(cpu::name(*p.other_isa)) : py::none());
}

void set_processor(int multiply_adds, int64_t second_level, bool always_fresh, std::optional<std::string> other_isa) {
  cpu::Processor p{multiply_adds, second_level, always_fresh};
  if (other_isa) p.other_isa = cpu::isa_of(*other_isa);
  cpu::set_processor(p);
  forget_plans();
}

}  // namespace

void add_testing(py::module_& m) {
  m.def("processor", &processor, "What the CPU's cost models know of the processor, a dict.");
  m.def("set_processor", &set_processor, py::arg("multiply_adds"), py::arg("second_level"), py::arg("always_fresh"),
        py::arg("other_isa") = py::none(),
        "What they shall believe from now on. With other_isa they plan for kernels of that instruction set, and nothing\n"
        "runs on the CPU. For tests.");
  m.def("winograd_forms", &winograd_forms,
        "The matrices of every form of Winograd's algorithm: (outputs, taps, A^T, G, B^T), as nested lists.");
  m.def("run_row", &run_row, py::arg("text"), py::arg("row"), py::arg("addresses"), py::arg("threads") = 1,
        py::arg("prepacked") = false, py::arg("device") = "cpu",
        "Runs one row of the device (cpu, simulated, or cuda: by copies) on raw host memory: addresses holds x, weight,\n"
        "y, bias, scale, aux, grad_bias or x, y, offsets, input, output, laid out as the problem's text says; nothing about\n"
        "them is checked. For tests. Raises RuntimeError if the row refuses,\n"
        "fails, or writes beyond its workspace, which is poisoned and guarded.");
}

}  // namespace fastconv::bindings
