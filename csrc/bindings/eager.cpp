// A short way into the CPU operators for plain eager calls.
//
// torch's dispatcher costs 6 us for a convolution's eleven arguments, and 15 us once a derivative is registered in
// Python, even when none is wanted: more than many small convolutions take. The functions here read the arguments,
// make sure that the dispatcher would do nothing but call the CPU kernel (no gradient, transform, mode, subclass,
// autocast, profiler), and call it: 2 us. In every other case, bad arguments included, they return None, and the
// caller takes the operator, which does or says the right thing.
#include "eager.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>
#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <utility>

#include "cpu.h"

namespace fastconv::bindings {
namespace {

// What the arguments are read under. A tensor is plain if the CPU kernel is what its keys, and the thread's, lead to.
struct State {
  c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  bool grad = c10::AutogradState::get_tls_state().get_grad_mode();
  bool forward_grad = c10::AutogradState::get_tls_state().get_fw_grad_mode();

  bool plain(const Tensor& t) const {
    // Autograd does nothing for a tensor that wants no gradient, and BackendSelect nothing for any.
    constexpr c10::DispatchKeySet idle =
        c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
    const c10::DispatchKeySet all = ((t.key_set() | keys.included_) - keys.excluded_) - idle;
    return all.highestPriorityTypeId() == c10::DispatchKey::CPU && !(grad && t.requires_grad()) &&
           !(forward_grad && t._fw_grad(0).defined());
  }
};

// One reader for each type of argument: read() says whether the object is what plain calls pass.

bool read_int(PyObject* o, int64_t& value) {
  if (!PyLong_CheckExact(o)) return false;  // neither bool nor SymInt
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(o, &overflow);
  return !overflow;
}

// At most four integers from a list or tuple: their count, or -1.
int read_ints(PyObject* o, std::array<int64_t, 4>& values) {
  if (!PyTuple_Check(o) && !PyList_CheckExact(o)) return -1;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(o);
  if (count > 4) return -1;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (!read_int(PySequence_Fast_GET_ITEM(o, i), values[i])) return -1;
  return static_cast<int>(count);
}

template <class T>
struct Reader;

template <>
struct Reader<const Tensor&> {
  const Tensor* value;
  bool read(PyObject* o, const State& state) {
    if (!THPVariable_CheckExact(o)) return false;
    value = &THPVariable_Unpack(o);
    return state.plain(*value);
  }
  const Tensor& get() const { return *value; }
};

template <>
struct Reader<const OptionalTensor&> {
  OptionalTensor value;
  bool read(PyObject* o, const State& state) {
    if (o == Py_None) return true;
    Reader<const Tensor&> tensor;
    if (!tensor.read(o, state)) return false;
    value = tensor.get();
    return true;
  }
  const OptionalTensor& get() const { return value; }
};

template <>
struct Reader<IntArrayRef> {
  std::array<int64_t, 4> values;
  int count;
  bool read(PyObject* o, const State&) { return (count = read_ints(o, values)) >= 0; }
  IntArrayRef get() const { return {values.data(), static_cast<size_t>(count)}; }
};

template <>
struct Reader<int64_t> {
  int64_t value;
  bool read(PyObject* o, const State&) { return read_int(o, value); }
  int64_t get() const { return value; }
};

template <>
struct Reader<std::optional<int64_t>> {
  std::optional<int64_t> value;
  bool read(PyObject* o, const State&) { return o == Py_None || read_int(o, value.emplace()); }
  std::optional<int64_t> get() const { return value; }
};

template <>
struct Reader<double> {
  double value;
  bool read(PyObject* o, const State&) {
    int64_t whole = 0;
    if (PyFloat_CheckExact(o))
      value = PyFloat_AS_DOUBLE(o);
    else if (read_int(o, whole))
      value = static_cast<double>(whole);
    else
      return false;
    return true;
  }
  double get() const { return value; }
};

template <>
struct Reader<bool> {
  bool value;
  bool read(PyObject* o, const State&) {
    value = o == Py_True;
    return PyBool_Check(o);
  }
  bool get() const { return value; }
};

template <>
struct Reader<std::string_view> {
  std::string_view value;
  bool read(PyObject* o, const State&) {
    if (!PyUnicode_Check(o)) return false;
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(o, &length);
    if (!text) PyErr_Clear();
    value = {text ? text : "", static_cast<size_t>(length)};
    return text;
  }
  std::string_view get() const { return value; }
};

// The forms that functional.py's arguments take: one integer, or height and width.

struct Pair {
  std::array<int64_t, 4> values;
  bool given = true;  // false: None or an empty list
  bool list_of_one = false;
  IntArrayRef list() const { return {values.data(), 2}; }
  IntArrayRef sides() const { return {values.data(), 4}; }
};

template <>
struct Reader<Pair> {
  Pair pair;
  bool read(PyObject* o, const State&) {
    auto& v = pair.values;
    int count = 1;
    if (o == Py_None)
      count = 0;
    else if (!read_int(o, v[0]))
      count = read_ints(o, v);
    pair.given = count > 0;
    pair.list_of_one = count == 1 && !PyLong_CheckExact(o);
    if (count == 1) v[1] = v[0];
    v[2] = v[0], v[3] = v[1];
    return count >= 0 && count <= 2;
  }
  const Pair& get() const { return pair; }
};

struct Named {
  std::string_view activation;
};

template <>
struct Reader<Named> {  // None: no activation
  Reader<std::string_view> text;
  bool read(PyObject* o, const State& state) {
    if (o != Py_None) return text.read(o, state) && text.value != "none";
    text.value = "none";
    return true;
  }
  Named get() const { return {text.get()}; }
};

struct NotPlain {};

IntArrayRef list(const Pair& pair) { return pair.given ? pair.list() : throw NotPlain{}; }
// Where torch takes one number or two, but no list of one.
IntArrayRef number_or_two(const Pair& pair) { return pair.list_of_one ? throw NotPlain{} : list(pair); }

Tensor functional_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual, Pair stride, Pair padding, Pair dilation, int64_t groups,
                         Named activation, std::string_view algorithm, std::string_view accuracy) {
  if (!padding.given) throw NotPlain{};
  return CpuOperators::conv2d(input, weight, bias, residual, list(stride), padding.sides(), list(dilation), groups,
                    activation.activation, algorithm, accuracy);
}

Tensor functional_conv2d_max_pool2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, Pair stride,
                                    Pair padding, Pair dilation, int64_t groups, Named activation,
                                    std::string_view algorithm, std::string_view accuracy) {
  if (!padding.given) throw NotPlain{};
  return CpuOperators::conv2d_max_pool2d(input, weight, bias, list(stride), padding.sides(), list(dilation), groups,
                                         activation.activation, algorithm, accuracy);
}

Tensor functional_conv2d_batch_norm(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& residual, const Tensor& running_mean,
                                    const Tensor& running_var, const OptionalTensor& gamma, const OptionalTensor& beta,
                                    double eps, Pair stride, Pair padding, Pair dilation, int64_t groups,
                                    Named activation, std::string_view algorithm, std::string_view accuracy) {
  if (!padding.given) throw NotPlain{};
  return CpuOperators::conv2d_batch_norm(input, weight, bias, residual, running_mean, running_var, gamma, beta, eps,
                                         list(stride), padding.sides(), list(dilation), groups,
                                         activation.activation, algorithm, accuracy);
}

Tensor functional_conv_transpose2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, Pair stride,
                                   Pair padding, Pair output_padding, int64_t groups, Pair dilation,
                                   std::string_view algorithm, std::string_view accuracy) {
  return CpuOperators::conv_transpose2d(input, weight, bias, list(stride), list(padding), list(output_padding), groups,
                                        list(dilation), algorithm, accuracy);
}

Tensor functional_max_pool2d(const Tensor& input, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                             bool ceil_mode) {
  const Pair& step = stride.given ? stride : kernel_size;
  return CpuOperators::max_pool2d_values(input, list(kernel_size), list(step), list(padding), list(dilation), ceil_mode);
}

Tensor functional_avg_pool2d(const Tensor& input, Pair kernel_size, Pair stride, Pair padding, bool ceil_mode,
                             bool count_include_pad, std::optional<int64_t> divisor_override) {
  const Pair& step = stride.given ? stride : kernel_size;
  return CpuOperators::avg_pool2d(input, list(kernel_size), list(step), list(padding), ceil_mode, count_include_pad,
                        divisor_override);
}

Tensor functional_adaptive_max_pool2d(const Tensor& input, Pair output_size) {
  return CpuOperators::adaptive_max_pool2d_values(input, number_or_two(output_size));
}

Tensor functional_adaptive_avg_pool2d(const Tensor& input, Pair output_size) {
  return CpuOperators::adaptive_avg_pool2d(input, number_or_two(output_size));
}

Tensor functional_lp_pool2d(const Tensor& input, double norm_type, Pair kernel_size, Pair stride, bool ceil_mode) {
  const Pair& step = stride.given ? stride : kernel_size;
  return CpuOperators::lp_pool2d(input, norm_type, number_or_two(kernel_size), list(step), ceil_mode);
}

// --- the call ---------------------------------------------------------------------------------------------

struct WithoutGil {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

PyObject* wrap(Tensor&& tensor) { return THPVariable_Wrap(std::move(tensor)); }

PyObject* wrap(std::tuple<Tensor, Tensor>&& pair) {
  PyObject* first = wrap(std::move(std::get<0>(pair)));
  PyObject* second = first ? wrap(std::move(std::get<1>(pair))) : nullptr;
  PyObject* both = second ? PyTuple_Pack(2, first, second) : nullptr;
  Py_XDECREF(first);
  Py_XDECREF(second);
  return both;
}

template <class Result, class... Args, size_t... I>
PyObject* call_with(Result (*function)(Args...), PyObject* const* args, std::index_sequence<I...>) {
  const State state;
  std::tuple<Reader<Args>...> readers;
  if (!(std::get<I>(readers).read(args[I], state) && ...)) return nullptr;
  Result result = [&] {
    WithoutGil released;
    at::AutoDispatchBelowADInplaceOrView below;
    return function(std::get<I>(readers).get()...);
  }();
  return wrap(std::move(result));
}

template <class Result, class... Args>
PyObject* call(Result (*function)(Args...), PyObject* const* args, Py_ssize_t count) {
  if (count != sizeof...(Args) || at::hasCallbacks() || at::impl::torch_function_mode_enabled()) return nullptr;
  try {
    return call_with(function, args, std::index_sequence_for<Args...>());
  } catch (...) {  // the operator, called next, throws again where it can be told properly
    return nullptr;
  }
}

template <auto function>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t count) {
  PyObject* result = call(function, args, count);
  if (result || PyErr_Occurred()) return result;
  Py_RETURN_NONE;
}

template <auto function>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&entry<function>)), METH_FASTCALL,
          "The operator's result for plain CPU tensors; None if the call has to go through torch's dispatcher."};
}

}  // namespace

bool add_eager_functions(PyObject* module) {
  static PyMethodDef methods[] = {
      method<&functional_conv2d>("functional_conv2d"),
      method<&functional_conv2d_max_pool2d>("functional_conv2d_max_pool2d"),
      method<&functional_conv2d_batch_norm>("functional_conv2d_batch_norm"),
      method<&functional_conv_transpose2d>("functional_conv_transpose2d"),
      method<&functional_max_pool2d>("functional_max_pool2d"),
      method<&functional_avg_pool2d>("functional_avg_pool2d"),
      method<&functional_adaptive_max_pool2d>("functional_adaptive_max_pool2d"),
      method<&functional_adaptive_avg_pool2d>("functional_adaptive_avg_pool2d"),
      method<&functional_lp_pool2d>("functional_lp_pool2d"),
      method<&CpuOperators::conv2d>("eager_conv2d"),
      method<&CpuOperators::conv2d_max_pool2d>("eager_conv2d_max_pool2d"),
      method<&CpuOperators::conv2d_batch_norm>("eager_conv2d_batch_norm"),
      method<&CpuOperators::conv2d_grad_input>("eager_conv2d_grad_input"),
      method<&CpuOperators::conv2d_grad_weight>("eager_conv2d_grad_weight"),
      method<&CpuOperators::conv_transpose2d>("eager_conv_transpose2d"),
      method<&CpuOperators::max_pool2d>("eager_max_pool2d"),
      method<&CpuOperators::max_pool2d_values>("eager_max_pool2d_values"),
      method<&CpuOperators::max_pool2d_backward>("eager_max_pool2d_backward"),
      method<&CpuOperators::max_pool2d_gather>("eager_max_pool2d_gather"),
      method<&CpuOperators::max_pool2d_indices>("eager_max_pool2d_indices"),
      method<&CpuOperators::avg_pool2d>("eager_avg_pool2d"),
      method<&CpuOperators::avg_pool2d_backward>("eager_avg_pool2d_backward"),
      method<&CpuOperators::adaptive_max_pool2d>("eager_adaptive_max_pool2d"),
      method<&CpuOperators::adaptive_max_pool2d_values>("eager_adaptive_max_pool2d_values"),
      method<&CpuOperators::adaptive_max_pool2d_backward>("eager_adaptive_max_pool2d_backward"),
      method<&CpuOperators::adaptive_max_pool2d_gather>("eager_adaptive_max_pool2d_gather"),
      method<&CpuOperators::adaptive_max_pool2d_indices>("eager_adaptive_max_pool2d_indices"),
      method<&CpuOperators::adaptive_avg_pool2d>("eager_adaptive_avg_pool2d"),
      method<&CpuOperators::adaptive_avg_pool2d_backward>("eager_adaptive_avg_pool2d_backward"),
      method<&CpuOperators::lp_pool2d>("eager_lp_pool2d"),
      method<&CpuOperators::lp_pool2d_backward>("eager_lp_pool2d_backward"),
      {nullptr, nullptr, 0, nullptr},
  };
  return PyModule_AddFunctions(module, methods) == 0;
}

}  // namespace fastconv::bindings
