// The pybind11 module fastconv._C: what was built, the algorithm table, problem texts, selection explained.
// Operators are not here: schema.cpp registers them with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <chrono>
#include <sstream>

#include "../core/selector.h"
#include "../cpu/isa.h"
#include "eager.h"
#include "problem_dict.h"
#include "simulated.h"
#include "testing.h"

namespace {

using namespace fastconv;
using namespace fastconv::bindings;

Device device_of(const std::string& word) {
  for (Device d : {Device::cpu, Device::cuda, Device::simulated})
    if (word == name(d)) return d;
  throw std::invalid_argument("fastconv: unknown device '" + word + "': expected cpu, cuda or simulated");
}

template <class E>
py::list names_in(Mask mask) {
  py::list list;
  for (E e : enumerators<E>())
    if (mask & bit(e)) list.append(name(e));
  return list;
}

template <class Row>
py::dict describe(const Row& row, const char* kind) {
  py::dict d;
  d["name"] = row.name;
  d["device"] = name(row.device);
  d["kind"] = kind;
  d["passes"] = names_in<Pass>(row.passes);
  d["dtypes"] = names_in<DType>(row.dtypes);
  d["min_arch"] = row.min_arch;
  d["deterministic"] = row.deterministic;
  d["summary"] = row.summary;
  d["source"] = row.source;
  return d;
}

py::list algorithms() {
  py::list list;
  for (const ConvRow& row : conv_rows()) {
    py::dict d = describe(row, "conv");
    d["max_pools"] = row.max_pools;
    list.append(d);
  }
  for (const PoolRow& row : pool_rows()) list.append(describe(row, "pool"));
  return list;
}

py::dict build_info() {
  py::dict d;
  d["torch"] = TORCH_VERSION;
  std::ostringstream compiler;
#if defined(__clang__)
  compiler << "clang " << __clang_version__;
#elif defined(__GNUC__)
  compiler << "g++ " << __VERSION__;
#else
  compiler << "unknown";
#endif
  d["compiler"] = compiler.str();
  d["cxx_standard"] = static_cast<long>(__cplusplus);
  py::list isas;
  isas.append("scalar");
  FASTCONV_FOR_AVX2(isas.append("avx2");)
  FASTCONV_FOR_AVX512(isas.append("avx512");)
  d["cpu_isas"] = isas;
#ifdef FASTCONV_WITH_CUDA
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  return d;
}

std::vector<Candidate> explained(const ConvProblem& p, Device device, int threads, const std::string& algorithm) {
  return explain(p, device, threads, algorithm);
}
std::vector<Candidate> explained(const PoolProblem& p, Device device, int threads, const std::string&) {
  return explain(p, device, threads);
}
const ConvPlan& selected(const ConvProblem& p, Device device, int threads, const std::string& algorithm) {
  return select(p, device, threads, algorithm);
}
const PoolPlan& selected(const PoolProblem& p, Device device, int threads, const std::string&) {
  return select(p, device, threads);
}

void require_threads(int threads) {
  if (threads < 1)
    throw std::invalid_argument("fastconv: threads is " + std::to_string(threads) + ", expected 1 or more");
}

py::list explain_text(const std::string& text, int threads, const std::string& algorithm, const std::string& device) {
  require_threads(threads);
  const auto candidates =
      with_problem(text, [&](const auto& p) { return explained(p, device_of(device), threads, algorithm); });
  py::list list;
  for (const Candidate& c : candidates) {
    py::dict d;
    d["name"] = c.name;
    d["device"] = name(c.device);
    d["ok"] = c.ok;
    d["reason"] = c.reason;
    d["cost"] = c.cost;
    d["workspace_bytes"] = c.workspace_bytes;
    d["prepack_bytes"] = c.prepack_bytes;
    d["executed_macs"] = c.executed_macs;
    d["chosen"] = c.chosen;
    list.append(d);
  }
  return list;
}

py::dict select_text(const std::string& text, int threads, const std::string& algorithm, const std::string& device) {
  require_threads(threads);
  return with_problem(text, [&](const auto& p) {
    const auto& plan = selected(p, device_of(device), threads, algorithm);
    py::dict d;
    d["name"] = plan.row->name;
    d["device"] = name(plan.row->device);
    d["threads"] = plan.threads;
    d["cost"] = plan.cost;
    d["workspace_bytes"] = plan.workspace_bytes;
    d["prepack_bytes"] = plan.prepack_bytes;
    d["executed_macs"] = plan.executed_macs;
    return d;
  });
}

double selection_seconds(const std::string& text, int threads, int repeats) {
  require_threads(threads);
  if (repeats < 1)
    throw std::invalid_argument("fastconv: repeats is " + std::to_string(repeats) + ", expected 1 or more");
  return with_problem(text, [&](const auto& p) {
    const std::string algorithm = "auto";
    const void* row = selected(p, Device::cpu, threads, algorithm).row;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i)
      if (selected(p, Device::cpu, threads, algorithm).row != row)
        throw std::runtime_error("fastconv: the choice changed");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
  });
}

py::dict facts(const std::string& text) {
  return with_problem(text, [](const auto& p) {
    py::dict d;
    if constexpr (std::is_same_v<std::decay_t<decltype(p)>, ConvProblem>) {
      d["p"] = p.p();
      d["q"] = p.q();
      d["macs"] = p.macs();
      d["weight_layout"] = name(layout_of(p.weight_sizes(), p.weight_strides));
    } else {
      d["p"] = p.p;
      d["q"] = p.q;
    }
    d["flops"] = p.flops();
    d["minimum_bytes"] = p.minimum_bytes();
    d["element_bytes"] = size_of(p.dtype);
    d["x_layout"] = name(layout_of(p.x_sizes(), p.x_strides));
    d["y_layout"] = name(layout_of(p.y_sizes(), p.y_strides));
    return d;
  });
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::usable_isas()) names.push_back(cpu::name(isa));
  return names;
}

void set_cpu_isa(const std::string& isa) {
  cpu::set_isa(isa);
  forget_plans();
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "fastconv's compiled part: what was built, the algorithm table, problem texts and selection.";

  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Refusal& refusal) {
      PyErr_SetString(PyExc_RuntimeError, refusal.message.c_str());
    }
  });

  m.def("build_info", &build_info, "What this file was compiled with: torch, compiler, cxx_standard, cpu_isas, cuda.");
  m.def("algorithms", &algorithms,
        "The algorithm table, a dict for each row: name, device, kind ('conv' or 'pool'), passes, dtypes, min_arch,\n"
        "deterministic, summary, source.");
  m.def("explain", &explain_text, py::arg("text"), py::arg("threads") = 1, py::arg("algorithm") = "auto",
        py::arg("device") = "cpu",
        "Every row's answer to a problem: name, device, ok, reason, cost (predicted seconds), workspace_bytes,\n"
        "prepack_bytes, executed_macs, chosen. Pools ignore `algorithm`: forcing applies to convolutions.\n"
        "Raises ValueError for a bad text, RuntimeError for an unknown algorithm.");
  m.def("select", &select_text, py::arg("text"), py::arg("threads") = 1, py::arg("algorithm") = "auto",
        py::arg("device") = "cpu",
        "The plan that a problem runs with: name, device, threads, cost, workspace_bytes, prepack_bytes,\n"
        "executed_macs. Raises RuntimeError, with the reason of every row, if none can or the forced one refuses.");
  m.def("selection_seconds", &selection_seconds, py::arg("text"), py::arg("threads") = 1, py::arg("repeats") = 100000,
        "Mean seconds of one selection of a problem whose plan is cached.");
  m.def("parse_problem",
        [](const std::string& text) { return with_problem(text, [](const auto& p) { return to_dict(p); }); },
        py::arg("text"), "The fields of a problem's text as a dict. Raises ValueError naming the word that is wrong.");
  m.def("problem_text",
        [](const py::dict& fields) { return with_problem(fields, [](const auto& p) { return text(p); }); },
        py::arg("fields"),
        "The canonical text of a problem given as a dict of fields: kind ('conv', 'max' or 'avg'), n, c, h, w, ...;\n"
        "missing ones take defaults, strides follow from layout ('nchw' or 'nhwc'). Raises ValueError.");
  m.def("conv_problem", [](const py::dict& fields) { return to_dict(from_dict<ConvProblem>(fields)); },
        py::arg("fields"),
        "A convolution's dict made complete and canonical: every field, strides included. Raises ValueError.");
  m.def("pool_problem", [](const py::dict& fields) { return to_dict(from_dict<PoolProblem>(fields)); },
        py::arg("fields"), "The same for a pool: p and q follow from the rest unless adaptive. Raises ValueError.");
  m.def(
      "fuses_max_pool",
      [](const std::string& text, int threads, const std::string& algorithm, const std::string& device) {
        return fuses_max_pool(parse_conv(text), device_of(device), threads, algorithm);
      },
      py::arg("text"), py::arg("threads"), py::arg("algorithm"), py::arg("device"),
      "Whether the problem of a text with maxpool2 runs as one kernel, or as convolution and pool apart.");
  m.def("problem_facts", &facts, py::arg("text"),
        "Derived from a problem's text: p, q, macs (convolutions), flops, minimum_bytes, element_bytes, x_layout,\n"
        "y_layout, weight_layout (convolutions).");
  m.def("cpu_isas", &cpu_isas, "The instruction sets that were compiled and that this CPU has, plainest first.");
  m.def("cpu_isa", [] { return std::string(cpu::name(cpu::isa())); }, "The instruction set in use.");
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("name"),
        "Changes the instruction set for the calls that follow. Raises RuntimeError if it is not usable here.");
  m.def("simulated_gpu", &simulated_gpu, "Whether CPU tensors go through the CUDA kernels in the emulator.");
  m.def("set_simulated_gpu", &set_simulated_gpu, py::arg("on"), "Changes that for the whole process.");
  bindings::add_testing(m);
  if (!add_eager_functions(m.ptr())) throw py::error_already_set();
}
