// The canonical text of a convolution:
//
//   conv n32c64h56w56 k128r3s3 st1 pd1 dl1 g1 bf16 nhwc fwd bias relu
//
//   sizes      n c h w of the input, then k filters of r x s
//   st dl      one number for both axes, or <h>x<w>
//   pd         pd1: all four; pd2x1: top and bottom 2, left and right 1; pd0,1,0,1: top, left, bottom, right
//   g          groups; maxpool2 follows if y holds the largest of each 2x2 outputs
//   dtype      f32 f64 f16 bf16 u8 i8 i16 i32 i64
//   layout     nchw or nhwc if every operand is dense in that order (nchw if both hold), else one word for each:
//              x:nchw w:nhwc y:802816,1,14336,256 (strides in elements). a:... follows if the auxiliary operand
//              (residual, or the forward's output in a gradient pass) is used and its strides are not those of y
//   pass       fwd grad_input grad_weight
//   flags      in this order: scale, bias, an activation (relu, sigmoid, ...; leaky_relu:<slope>, elu:<alpha>), res, tf32
//              or 3xtf32, acc:fast or acc:fastest, det, al:<x>,<w>,<y> (log2 of the operands' alignment in bytes; absent:
//              64 bytes or more, each)
//
// Sizes, strides and so on have one spelling each, so equal problems have equal texts.
#include <stdexcept>

#include "text_words.h"

namespace fastconv {

std::string text(const ConvProblem& given) {
  ConvProblem p = given;
  p.canonicalise();
  std::string t = "conv";
  t += " n" + std::to_string(p.n) + "c" + std::to_string(p.c) + "h" + std::to_string(p.h) + "w" + std::to_string(p.w);
  t += " k" + std::to_string(p.k) + "r" + std::to_string(p.r) + "s" + std::to_string(p.s);
  t += pair_word("st", p.stride_h, p.stride_w);
  if (p.pad_top == p.pad_bottom && p.pad_left == p.pad_right)
    t += pair_word("pd", p.pad_top, p.pad_left);
  else
    t += list_word("pd", {p.pad_top, p.pad_left, p.pad_bottom, p.pad_right});
  t += pair_word("dl", p.dilation_h, p.dilation_w);
  t += " g" + std::to_string(p.groups);
  if (p.max_pool) t += " maxpool2";
  t += std::string(" ") + name(p.dtype);
  t += layout_words({{"x", p.x_sizes(), &p.x_strides},
                     {"w", p.weight_sizes(), &p.weight_strides},
                     {"y", p.y_sizes(), &p.y_strides}});
  if (p.has_aux() && p.aux_strides != p.y_strides) t += layout_word({"a", p.y_sizes(), &p.aux_strides});
  t += std::string(" ") + pass_word(p.pass);
  if (p.scale) t += " scale";
  if (p.bias) t += " bias";
  if (p.activation != Activation::none) t += ' ' + activation_word(p.activation, p.activation_parameter);
  if (p.residual) t += " res";
  if (p.math == MathMode::tf32) t += " tf32";
  if (p.math == MathMode::fp32_3xtf32) t += " 3xtf32";
  if (p.accuracy != Accuracy::torch) t += std::string(" acc:") + name(p.accuracy);
  if (p.deterministic) t += " det";
  if (p.x_align != kFullAlignment || p.weight_align != kFullAlignment || p.y_align != kFullAlignment)
    t += list_word("al:", {p.x_align, p.weight_align, p.y_align});
  return t;
}

ConvProblem parse_conv(const std::string& source) {
  Words words(source);
  ConvProblem p;
  if (words.take("'conv'") != "conv") words.fail("'conv'");
  words.keyed({{"n", &p.n}, {"c", &p.c}, {"h", &p.h}, {"w", &p.w}});
  words.keyed({{"k", &p.k}, {"r", &p.r}, {"s", &p.s}});
  words.pair("st", p.stride_h, p.stride_w);
  int64_t pads[4];
  const int given = words.numbers("pd", pads);
  p.pad_top = pads[0];
  p.pad_left = pads[given == 1 ? 0 : 1];
  p.pad_bottom = given == 4 ? pads[2] : p.pad_top;
  p.pad_right = given == 4 ? pads[3] : p.pad_left;
  words.pair("dl", p.dilation_h, p.dilation_w);
  p.groups = words.number("g");
  p.max_pool = words.accept("maxpool2");
  p.dtype = words.dtype();
  // Strides need the sizes to be sound; the rest of the check follows at the end.
  const auto require_sound = [&] {
    const Status status = check(p);
    if (!status) throw std::invalid_argument("fastconv: bad problem '" + source + "': " + status.reason());
  };
  require_sound();
  words.layouts({{"x", p.x_sizes(), &p.x_strides},
                 {"w", p.weight_sizes(), &p.weight_strides},
                 {"y", p.y_sizes(), &p.y_strides}});
  p.aux_strides = p.y_strides;
  const bool aux_given = words.layout({"a", p.y_sizes(), &p.aux_strides});
  if (words.accept("fwd"))
    p.pass = Pass::forward;
  else if (words.accept("grad_input"))
    p.pass = Pass::grad_input;
  else if (words.accept("grad_weight"))
    p.pass = Pass::grad_weight;
  else
    words.fail_next(aux_given ? "fwd, grad_input or grad_weight" : "fwd, grad_input or grad_weight (or a:<layout>)");
  p.scale = words.accept("scale");
  p.bias = words.accept("bias");
  words.activation(p.activation, p.activation_parameter);
  p.residual = words.accept("res");
  if (words.accept("tf32"))
    p.math = MathMode::tf32;
  else if (words.accept("3xtf32"))
    p.math = MathMode::fp32_3xtf32;
  if (words.accept("acc:fast"))
    p.accuracy = Accuracy::fast;
  else if (words.accept("acc:fastest"))
    p.accuracy = Accuracy::fastest;
  p.deterministic = words.accept("det");
  if (words.starts_with("al:")) {
    const std::string word = words.take("al:<x>,<w>,<y>");
    uint8_t* aligns[3] = {&p.x_align, &p.weight_align, &p.y_align};
    // Three single digits of at most kFullAlignment.
    bool good = word.size() == 8 && word[4] == ',' && word[6] == ',';
    for (int i = 0; good && i < 3; ++i) {
      const char digit = word[3 + 2 * i];
      good = digit >= '0' && digit <= '0' + kFullAlignment;
      *aligns[i] = static_cast<uint8_t>(digit - '0');
    }
    if (!good) words.fail("al:<x>,<w>,<y> with numbers from 0 to " + std::to_string(kFullAlignment));
  }
  words.finish("scale, bias, <activation>, res, tf32 or 3xtf32, acc:<class>, det, al:<x>,<w>,<y>");
  if (aux_given && !p.has_aux())
    throw std::invalid_argument("fastconv: bad problem '" + source + "': a:... without 'res' or a masked gradient");
  if (!p.has_aux()) p.aux_strides = {};
  require_sound();
  return p;
}

}  // namespace fastconv
