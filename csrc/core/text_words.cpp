#include "text_words.h"

#include <charconv>
#include <stdexcept>

namespace fastconv {
namespace {

// Reads one decimal number at `at` and moves past it. No sign, no leading zero: one number has one spelling.
bool read_number(const std::string& word, size_t& at, int64_t& value, bool& too_large) {
  const char* first = word.data() + at;
  const char* last = word.data() + word.size();
  if (first == last || *first < '0' || *first > '9') return false;
  if (*first == '0' && last - first > 1 && first[1] >= '0' && first[1] <= '9') return false;
  const auto [end, error] = std::from_chars(first, last, value);
  too_large = error == std::errc::result_out_of_range;
  at = static_cast<size_t>(end - word.data());
  return !too_large;
}

bool read_literal(const std::string& word, size_t& at, const char* literal) {
  const std::string l = literal;
  if (word.compare(at, l.size(), l) != 0) return false;
  at += l.size();
  return true;
}

const char kTooLarge[] = "a number that fits into 64 bits";

}  // namespace

Words::Words(const std::string& text) : text_(text) {
  std::string word;
  for (char ch : text + ' ') {
    if (ch != ' ') {
      word += ch;
    } else if (!word.empty()) {
      words_.push_back(std::move(word));
      word.clear();
    }
  }
}

void Words::fail(const std::string& expected) const {
  const std::string where =
      next_ == 0 ? "the empty text" : "word " + std::to_string(next_) + " '" + words_[next_ - 1] + "'";
  throw std::invalid_argument("fastconv: bad problem text at " + where + ": expected " + expected + " (in '" + text_ +
                              "')");
}

void Words::fail_next(const std::string& expected) {
  if (!at_end()) ++next_;
  fail(expected);
}

std::string Words::take(const std::string& expected) {
  if (at_end())
    throw std::invalid_argument("fastconv: bad problem text at its end: expected " + expected + " (in '" + text_ +
                                "')");
  return words_[next_++];
}

bool Words::accept(const char* word) {
  if (at_end() || words_[next_] != word) return false;
  ++next_;
  return true;
}

void Words::keyed(std::initializer_list<std::pair<const char*, int64_t*>> fields) {
  std::string shape;
  for (const auto& field : fields) shape += std::string(field.first) + "<number>";
  const std::string word = take(shape);
  size_t at = 0;
  for (const auto& [key, value] : fields) {
    bool too_large = false;
    if (!read_literal(word, at, key) || !read_number(word, at, *value, too_large)) fail(too_large ? kTooLarge : shape);
  }
  if (at != word.size()) fail(shape);
}

int Words::numbers(const char* prefix, int64_t (&values)[4]) {
  const std::string p = prefix;
  const std::string shape =
      p == "pd" ? "pd<all>, pd<h>x<w> or pd<top>,<left>,<bottom>,<right>" : p + "<both> or " + p + "<h>x<w>";
  const std::string word = take(shape);
  size_t at = 0;
  if (!read_literal(word, at, prefix)) fail(shape);
  int count = 0;
  char separator = 0;
  for (;;) {
    bool too_large = false;
    if (!read_number(word, at, values[count], too_large)) fail(too_large ? kTooLarge : shape);
    ++count;
    if (at == word.size()) break;
    const char ch = word[at++];
    if (count == 4 || (ch != 'x' && ch != ',') || (separator && ch != separator)) fail(shape);
    separator = ch;
  }
  if (count == 3 || (count == 2 && separator != 'x') || (count == 4 && separator != ',')) fail(shape);
  return count;
}

void Words::pair(const char* prefix, int64_t& h, int64_t& w) {
  int64_t values[4];
  const int count = numbers(prefix, values);
  if (count > 2) fail(std::string(prefix) + "<both> or " + prefix + "<h>x<w>");
  h = values[0];
  w = values[count - 1];
}

int64_t Words::number(const char* prefix) {
  int64_t value = 0;
  keyed({{prefix, &value}});
  return value;
}

DType Words::dtype() {
  const std::string all = "a dtype: f32, f64, f16, bf16, u8, i8, i16, i32 or i64";
  const std::string word = take(all);
  for (DType t : {DType::f32, DType::f64, DType::f16, DType::bf16, DType::u8, DType::i8, DType::i16, DType::i32,
                  DType::i64})
    if (word == name(t)) return t;
  fail(all);
}

bool Words::activation(Activation& activation, Real& parameter) {
  if (at_end() || words_[next_] == name(Activation::none) || !read_activation(words_[next_], activation, parameter))
    return false;
  ++next_;
  return true;
}

void Words::finish(const char* flags) {
  if (!at_end()) fail_next(std::string("the end of the text, or a flag in the order ") + flags);
}

bool Words::layout(const Operand& operand) {
  const std::string key = std::string(operand.key) + ":";
  if (!starts_with(key.c_str())) return false;
  const std::string shape = key + "nchw, " + key + "nhwc or " + key + " and four strides";
  const std::string word = take(shape);
  const std::string value = word.substr(key.size());
  if (value == "nchw" || value == "nhwc") {
    *operand.strides = dense_strides(operand.sizes, value == "nchw" ? Layout::nchw : Layout::nhwc);
    return true;
  }
  size_t at = key.size();
  for (int i = 0; i < 4; ++i) {
    bool too_large = false;
    if ((i > 0 && !read_literal(word, at, ",")) || !read_number(word, at, (*operand.strides)[i], too_large))
      fail(too_large ? kTooLarge : shape);
  }
  if (at != word.size()) fail(shape);
  *operand.strides = canonical(operand.sizes, *operand.strides);
  return true;
}

void Words::layouts(std::initializer_list<Operand> operands) {
  for (Layout l : {Layout::nchw, Layout::nhwc}) {
    if (!accept(name(l))) continue;
    for (const Operand& o : operands) *o.strides = dense_strides(o.sizes, l);
    return;
  }
  bool first = true;
  for (const Operand& o : operands) {
    if (!layout(o)) fail_next(std::string(first ? "nchw, nhwc or " : "") + o.key + ":<layout or strides>");
    first = false;
  }
}

std::string pair_word(const char* prefix, int64_t h, int64_t w) {
  return ' ' + std::string(prefix) + std::to_string(h) + (h == w ? "" : 'x' + std::to_string(w));
}

std::string list_word(const char* prefix, std::initializer_list<int64_t> values) {
  std::string word = ' ' + std::string(prefix);
  const char* separator = "";
  for (int64_t v : values) {
    word += separator + std::to_string(v);
    separator = ",";
  }
  return word;
}

std::string layout_word(const Words::Operand& o) {
  const std::string key = std::string(o.key) + ":";
  const Strides4& s = *o.strides;
  switch (layout_of(o.sizes, s)) {
    case Layout::nchw:
    case Layout::both: return ' ' + key + "nchw";
    case Layout::nhwc: return ' ' + key + "nhwc";
    case Layout::strided: break;
  }
  return list_word(key.c_str(), {s[0], s[1], s[2], s[3]});
}

std::string layout_words(std::initializer_list<Words::Operand> operands) {
  for (Layout l : {Layout::nchw, Layout::nhwc}) {
    bool all = true;
    for (const auto& o : operands) all = all && *o.strides == dense_strides(o.sizes, l);
    if (all) return std::string(" ") + name(l);
  }
  std::string words;
  for (const auto& o : operands) words += layout_word(o);
  return words;
}

const char* pass_word(Pass pass) { return pass == Pass::forward ? "fwd" : name(pass); }

}  // namespace fastconv
