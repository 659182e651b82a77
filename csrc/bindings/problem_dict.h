// Problems as Python dicts: one entry for each field of the struct, under the field's name, enumerators by name.
//
// Extra entries: `kind` is "conv", "max", "avg" or "lp" and tells which struct it is. Read only: `layout` ("nchw" or "nhwc",
// nchw by default) fills the strides that are not given. Missing fields take the struct's defaults; a pool's output
// size p, q follows from the rest unless it is adaptive. Unknown names are errors.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../core/problem.h"

namespace fastconv::bindings {

namespace py = pybind11;

// Calls f(name, field) for every field that a dict carries.
template <class P, class F>
void for_each_field(P& p, F&& f) {
  f("n", p.n), f("c", p.c), f("h", p.h), f("w", p.w), f("r", p.r), f("s", p.s);
  f("stride_h", p.stride_h), f("stride_w", p.stride_w), f("pad_top", p.pad_top), f("pad_left", p.pad_left);
  f("dilation_h", p.dilation_h), f("dilation_w", p.dilation_w);
  f("x_strides", p.x_strides), f("y_strides", p.y_strides), f("dtype", p.dtype), f("pass", p.pass);
  if constexpr (std::is_same_v<std::remove_const_t<P>, ConvProblem>) {
    f("k", p.k), f("pad_bottom", p.pad_bottom), f("pad_right", p.pad_right), f("groups", p.groups);
    f("weight_strides", p.weight_strides), f("aux_strides", p.aux_strides);
    f("math", p.math), f("accuracy", p.accuracy), f("activation", p.activation);
    f("activation_parameter", p.activation_parameter);
    f("scale", p.scale), f("bias", p.bias), f("residual", p.residual), f("max_pool", p.max_pool);
    f("deterministic", p.deterministic);
    f("x_align", p.x_align), f("weight_align", p.weight_align), f("y_align", p.y_align);
  } else {
    f("p", p.p), f("q", p.q), f("divisor", p.divisor), f("offset_strides", p.offset_strides), f("kind", p.kind);
    f("offset_bytes", p.offset_bytes), f("ceil_mode", p.ceil_mode), f("count_include_pad", p.count_include_pad);
    f("adaptive", p.adaptive), f("norm", p.norm);
  }
}

// Bytes that count something; the other uint8_t fields are true or false.
inline bool is_count(const std::string& field) {
  return field == "offset_bytes" || field == "x_align" || field == "weight_align" || field == "y_align";
}

inline DType last_of(DType) { return DType::i64; }
inline MathMode last_of(MathMode) { return MathMode::fp32_3xtf32; }
inline Accuracy last_of(Accuracy) { return Accuracy::fastest; }
inline Activation last_of(Activation) { return Activation::hardswish; }
inline Pass last_of(Pass) { return Pass::gather; }
inline PoolKind last_of(PoolKind) { return PoolKind::lp; }

template <class E>
std::vector<E> enumerators() {
  std::vector<E> all;
  for (int i = 0; i <= static_cast<int>(last_of(E{})); ++i) all.push_back(static_cast<E>(i));
  return all;
}

[[noreturn]] inline void bad_field(const char* key, const std::string& expected, const py::handle& got) {
  throw std::invalid_argument("fastconv: field '" + std::string(key) + "': expected " + expected + ", got " +
                              py::repr(got).cast<std::string>());
}

inline int64_t to_number(const char* key, const py::handle& value) {
  int overflow = 0;
  const long long number = PyIndex_Check(value.ptr()) ? PyLong_AsLongLongAndOverflow(value.ptr(), &overflow) : -1;
  if (!PyIndex_Check(value.ptr()) || overflow) bad_field(key, "an integer that fits into 64 bits", value);
  if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
  return number;
}

inline void set(const char* key, int64_t& field, const py::handle& value) { field = to_number(key, value); }

inline void set(const char* key, uint8_t& field, const py::handle& value) {
  const int64_t number = to_number(key, value), most = is_count(key) ? 255 : 1;
  if (number < 0 || number > most) bad_field(key, most == 1 ? "True or False" : "a small number", value);
  field = static_cast<uint8_t>(number);
}

inline void set(const char* key, Real& field, const py::handle& value) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    bad_field(key, "a number", value);
  }
  field = Real::of(number);
}

inline void set(const char* key, Strides4& field, const py::handle& value) {
  if (!PySequence_Check(value.ptr()) || py::len(value) != 4) bad_field(key, "four strides", value);
  for (size_t i = 0; i < 4; ++i) field[i] = to_number(key, py::reinterpret_borrow<py::sequence>(value)[i]);
}

template <class E, class = std::enable_if_t<std::is_enum_v<E>>>
void set(const char* key, E& field, const py::handle& value) {
  const std::string word = py::isinstance<py::str>(value) ? value.cast<std::string>() : "";
  std::string all;
  for (E e : enumerators<E>()) {
    if (word == name(e)) {
      field = e;
      return;
    }
    all += std::string(all.empty() ? "" : ", ") + name(e);
  }
  bad_field(key, "one of " + all, value);
}

inline py::object get(const char*, int64_t field) { return py::int_(field); }
inline py::object get(const char*, Real field) { return py::float_(field.value()); }
inline py::object get(const char*, const Strides4& s) { return py::make_tuple(s[0], s[1], s[2], s[3]); }
inline py::object get(const char* key, uint8_t field) {
  return is_count(key) ? py::object(py::int_(field)) : py::object(py::bool_(field != 0));
}
template <class E, class = std::enable_if_t<std::is_enum_v<E>>>
py::object get(const char*, E field) {
  return py::str(name(field));
}

template <class P>
py::dict to_dict(const P& problem) {
  py::dict d;
  if (std::is_same_v<P, ConvProblem>) d["kind"] = "conv";
  for_each_field(problem, [&](const char* key, const auto& field) { d[key] = get(key, field); });
  return d;
}

template <class P>
void require_sound(const P& problem) {
  if (const Status status = check(problem); !status) throw std::invalid_argument("fastconv: " + status.reason());
}

inline void derive(ConvProblem& p, const py::dict& d) {
  if (!d.contains("activation_parameter")) read_activation(name(p.activation), p.activation, p.activation_parameter);
}
inline void derive(PoolProblem& p, const py::dict& d) {
  p.fit_adaptive_window();
  if (!d.contains("p") && !p.adaptive)
    p.p = PoolProblem::output_size(p.h, p.r, p.stride_h, p.pad_top, p.dilation_h, p.ceil_mode);
  if (!d.contains("q") && !p.adaptive)
    p.q = PoolProblem::output_size(p.w, p.s, p.stride_w, p.pad_left, p.dilation_w, p.ceil_mode);
}

inline bool is_pool(const py::dict& d) {
  if (!d.contains("kind")) return false;
  const std::string kind = py::str(d["kind"]);
  if (kind != "conv" && kind != "max" && kind != "avg" && kind != "lp")
    bad_field("kind", "one of conv, max, avg, lp", d["kind"]);
  return kind != "conv";
}

// A sound, canonical problem, or std::invalid_argument.
template <class P>
P from_dict(const py::dict& d) {
  if (is_pool(d) != std::is_same_v<P, PoolProblem>)
    throw std::invalid_argument(std::string("fastconv: field 'kind': expected ") +
                                (is_pool(d) ? "conv, or nothing" : "max, avg or lp"));
  P p;
  std::vector<std::string> known{"layout", "kind"};
  for_each_field(p, [&](const char* key, auto& field) {
    known.push_back(key);
    if (d.contains(key)) set(key, field, d[key]);
  });
  for (const auto& item : d) {
    const std::string key = py::str(item.first);
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw std::invalid_argument("fastconv: a problem has no field '" + key + "'");
  }
  derive(p, d);
  require_sound(p);  // before strides are made from the sizes
  Layout layout = Layout::nchw;
  if (d.contains("layout")) {
    const std::string word = py::str(d["layout"]);
    if (word != name(Layout::nchw) && word != name(Layout::nhwc)) bad_field("layout", "nchw or nhwc", d["layout"]);
    if (word == name(Layout::nhwc)) layout = Layout::nhwc;
  }
  p.set_layout(layout);
  for_each_field(p, [&](const char* key, auto& field) {
    if constexpr (std::is_same_v<decltype(field), Strides4&>)
      if (d.contains(key)) set(key, field, d[key]);  // given strides win over the layout
  });
  p.canonicalise();
  require_sound(p);
  return p;
}

inline bool is_pool(const std::string& text) {
  return text.rfind("maxpool", 0) == 0 || text.rfind("avgpool", 0) == 0 || text.rfind("lppool", 0) == 0;
}

// Calls f with the ConvProblem or PoolProblem that a text or a dict stands for.
template <class F>
auto with_problem(const std::string& text, F&& f) {
  return is_pool(text) ? f(parse_pool(text)) : f(parse_conv(text));
}
template <class F>
auto with_problem(const py::dict& d, F&& f) {
  return is_pool(d) ? f(from_dict<PoolProblem>(d)) : f(from_dict<ConvProblem>(d));
}

}  // namespace fastconv::bindings
