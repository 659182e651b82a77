// Activations as words and properties; what they compute is in cpu/kernels/activation.h and cuda/epilogue.cuh.
#include <charconv>
#include <cstring>

#include "problem.h"

namespace fastconv {
namespace {

constexpr Activation kActivations[] = {
    Activation::none,    Activation::relu, Activation::leaky_relu, Activation::relu6, Activation::elu,
    Activation::sigmoid, Activation::tanh, Activation::silu,       Activation::gelu,  Activation::hardswish,
};

// The defaults of torch.nn.functional.leaky_relu and elu.
double default_parameter(Activation a) { return a == Activation::leaky_relu ? 0.01 : 1.0; }

}  // namespace

Real Real::of(double value) {
  Real real;
  if (value != 0) std::memcpy(&real.bits, &value, sizeof value);
  return real;
}

double Real::value() const {
  double value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool has_parameter(Activation a) { return a == Activation::leaky_relu || a == Activation::elu; }

bool differentiable_from_output(Activation a) {
  return a != Activation::silu && a != Activation::gelu && a != Activation::hardswish;
}

std::string activation_word(Activation a, Real parameter) {
  return has_parameter(a) ? std::string(name(a)) + ":" + shortest(parameter.value()) : name(a);
}

bool read_activation(std::string_view word, Activation& activation, Real& parameter) {
  for (Activation a : kActivations) {
    const std::string_view known = name(a);
    if (word.substr(0, known.size()) != known) continue;
    std::string_view rest = word.substr(known.size());
    double value = default_parameter(a);
    if (!rest.empty()) {
      if (rest[0] != ':' || !has_parameter(a)) continue;
      const char* last = rest.data() + rest.size();
      const auto [end, error] = std::from_chars(rest.data() + 1, last, value);
      if (error != std::errc() || end != last) return false;
    }
    activation = a;
    parameter = has_parameter(a) ? Real::of(value) : Real{};
    return true;
  }
  return false;
}

std::string activation_names() {
  std::string names;
  for (Activation a : kActivations) names += std::string(names.empty() ? "" : ", ") + name(a);
  return names;
}

std::string shortest(double value) {
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
}

}  // namespace fastconv
