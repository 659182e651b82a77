// The canonical text of a pooling problem, in the words of text.cpp:
//
//   maxpool n1c64h224w224 r2s2 st2 pd0 dl1 f32 nchw fwd off8
//   avgpool n1c64h56w56 r3s3 st2 pd1 dl1 f32 nhwc fwd ceil nopad div3
//   avgpool n1c512h13w13 r3s3 st1 pd0 dl1 f32 nchw fwd adaptive p6q6
//   lppool n1c64h56w56 r2s2 st2 pd0 dl1 f32 nchw fwd norm2
//
//   r s        the window; st, pd, dl: one number for both axes, or <h>x<w>; pads are symmetric
//   layout     nchw or nhwc for all, else x:... y:..., then o:... if there are window offsets strided otherwise than y
//   pass       fwd grad_input gather
//   flags      in this order: off8, off16 or off32 (bits of a window offset), ceil, nopad (padding does not count in
//              the average), div<number> (divisor_override), norm<number> (of LP pooling), adaptive
//   p q        the output size, last, and only of adaptive pools: of the others it follows from the rest. Reading
//              replaces an adaptive pool's window by the right one; equal windows make it a plain pool.
#include <charconv>
#include <stdexcept>

#include "text_words.h"

namespace fastconv {
namespace {

void derive_output(PoolProblem& p) {
  p.p = PoolProblem::output_size(p.h, p.r, p.stride_h, p.pad_top, p.dilation_h, p.ceil_mode);
  p.q = PoolProblem::output_size(p.w, p.s, p.stride_w, p.pad_left, p.dilation_w, p.ceil_mode);
}

}  // namespace

std::string text(const PoolProblem& given) {
  PoolProblem p = given;
  p.canonicalise();
  std::string t = std::string(name(p.kind)) + "pool";
  t += " n" + std::to_string(p.n) + "c" + std::to_string(p.c) + "h" + std::to_string(p.h) + "w" + std::to_string(p.w);
  t += " r" + std::to_string(p.r) + "s" + std::to_string(p.s);
  t += pair_word("st", p.stride_h, p.stride_w);
  t += pair_word("pd", p.pad_top, p.pad_left);
  t += pair_word("dl", p.dilation_h, p.dilation_w);
  t += std::string(" ") + name(p.dtype);
  t += layout_words({{"x", p.x_sizes(), &p.x_strides}, {"y", p.y_sizes(), &p.y_strides}});
  if (p.offset_bytes && p.offset_strides != p.y_strides) t += layout_word({"o", p.y_sizes(), &p.offset_strides});
  t += std::string(" ") + pass_word(p.pass);
  if (p.offset_bytes) t += " off" + std::to_string(8 * p.offset_bytes);
  if (p.ceil_mode) t += " ceil";
  if (!p.count_include_pad) t += " nopad";
  if (p.divisor) t += " div" + std::to_string(p.divisor);
  if (p.kind == PoolKind::lp) t += " norm" + shortest(p.norm.value());
  if (p.adaptive) t += " adaptive p" + std::to_string(p.p) + "q" + std::to_string(p.q);
  return t;
}

PoolProblem parse_pool(const std::string& source) {
  Words words(source);
  PoolProblem p;
  const std::string kind = words.take("'maxpool', 'avgpool' or 'lppool'");
  if (kind != "maxpool" && kind != "avgpool" && kind != "lppool") words.fail("'maxpool', 'avgpool' or 'lppool'");
  p.kind = kind == "maxpool" ? PoolKind::max : kind == "avgpool" ? PoolKind::avg : PoolKind::lp;
  words.keyed({{"n", &p.n}, {"c", &p.c}, {"h", &p.h}, {"w", &p.w}});
  words.keyed({{"r", &p.r}, {"s", &p.s}});
  words.pair("st", p.stride_h, p.stride_w);
  words.pair("pd", p.pad_top, p.pad_left);
  words.pair("dl", p.dilation_h, p.dilation_w);
  p.dtype = words.dtype();

  // The output size comes last, or follows from flags, but operands' strides are read before: their words are put
  // aside and read when the sizes are known.
  const Words layout_at = words;
  for (bool more = true; more;) {
    more = false;
    for (const char* start : {"nchw", "nhwc", "x:", "y:", "o:"}) more = more || words.starts_with(start);
    if (more) words.take("a layout");
  }
  if (words.accept("fwd"))
    p.pass = Pass::forward;
  else if (words.accept("grad_input"))
    p.pass = Pass::grad_input;
  else if (words.accept("gather"))
    p.pass = Pass::gather;
  else
    words.fail_next("a layout (nchw, nhwc or x:... y:...), then fwd, grad_input or gather");
  for (int bytes : {1, 2, 4})
    if (!p.offset_bytes && words.accept(("off" + std::to_string(8 * bytes)).c_str()))
      p.offset_bytes = static_cast<uint8_t>(bytes);
  p.ceil_mode = words.accept("ceil");
  p.count_include_pad = !words.accept("nopad");
  if (words.starts_with("div")) {
    const std::string word = words.take("div<number>");
    const auto [end, error] = std::from_chars(word.data() + 3, word.data() + word.size(), p.divisor);
    if (error != std::errc() || *end || word != "div" + std::to_string(p.divisor) || !p.divisor)
      words.fail("div<number>, a number other than 0 that fits into 64 bits");
  }
  if (p.kind == PoolKind::lp) {
    const std::string word = words.take("norm<number>");
    double norm = 0;
    const bool named = word.rfind("norm", 0) == 0;
    const auto [end, error] = std::from_chars(word.data() + (named ? 4 : 0), word.data() + word.size(), norm);
    if (!named || error != std::errc() || *end) words.fail("norm<number>");
    p.norm = Real::of(norm);
  }
  p.adaptive = words.accept("adaptive");
  if (p.adaptive) words.keyed({{"p", &p.p}, {"q", &p.q}});
  words.finish("off<bits>, ceil, nopad, div<number>, norm<number>, adaptive p<number>q<number>");

  const auto require_sound = [&] {
    const Status status = check(p);
    if (!status) throw std::invalid_argument("fastconv: bad problem '" + source + "': " + status.reason());
  };
  if (p.kind != PoolKind::avg && (!p.count_include_pad || p.divisor))
    throw std::invalid_argument("fastconv: bad problem '" + source + "': nopad and div belong to avgpool");
  if (p.adaptive)
    p.fit_adaptive_window();
  else
    derive_output(p);
  require_sound();
  words = layout_at;
  words.layouts({{"x", p.x_sizes(), &p.x_strides}, {"y", p.y_sizes(), &p.y_strides}});
  p.offset_strides = p.y_strides;
  const bool offsets_given = words.layout({"o", p.y_sizes(), &p.offset_strides});
  if (!words.starts_with(pass_word(p.pass))) words.fail_next("fwd, grad_input or gather");
  if (offsets_given && !p.offset_bytes)
    throw std::invalid_argument("fastconv: bad problem '" + source + "': o:... without window offsets");
  if (!p.offset_bytes) p.offset_strides = {};
  require_sound();
  return p;
}

}  // namespace fastconv
