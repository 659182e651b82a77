// Shared by the two problem texts: reading words strictly in order, with errors that name the word.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

namespace fastconv {

// Splits a text at blanks and hands out the words in order. Every failure throws std::invalid_argument.
class Words {
 public:
  explicit Words(const std::string& text);

  bool at_end() const { return next_ == words_.size(); }
  bool starts_with(const char* prefix) const { return !at_end() && words_[next_].rfind(prefix, 0) == 0; }
  std::string take(const std::string& expected);  // throws if there is none
  bool accept(const char* word);                  // takes it if it is exactly this one
  // Throws, naming the word taken last (or the end of the text) and what should stand there.
  [[noreturn]] void fail(const std::string& expected) const;
  [[noreturn]] void fail_next(const std::string& expected);

  // "n32c64h56w56": every key in order, each followed by a number.
  void keyed(std::initializer_list<std::pair<const char*, int64_t*>> fields);
  // "st2" or "st2x1": a prefix and one number for both axes or one each.
  void pair(const char* prefix, int64_t& h, int64_t& w);
  // "pd1", "pd2x1" or "pd0,1,0,1"; returns how many numbers were given.
  int numbers(const char* prefix, int64_t (&values)[4]);
  int64_t number(const char* prefix);
  DType dtype();
  bool activation(Activation& activation, Real& parameter);  // takes the word if it is an activation other than none
  void finish(const char* flags);  // throws if words are left; `flags` is the order in which they go

  struct Operand {
    const char* key;
    Sizes4 sizes;
    Strides4* strides;
  };
  // "nhwc" for all, or one word for each operand: "x:nchw w:nhwc y:1,2,3,4".
  void layouts(std::initializer_list<Operand> operands);
  // Only this operand's word, if it is next.
  bool layout(const Operand& operand);

 private:
  std::string text_;
  std::vector<std::string> words_;
  size_t next_ = 0;
};

std::string pair_word(const char* prefix, int64_t h, int64_t w);
std::string list_word(const char* prefix, std::initializer_list<int64_t> values);
// The layout words, each preceded by a blank. Strides must be canonical.
std::string layout_words(std::initializer_list<Words::Operand> operands);
std::string layout_word(const Words::Operand& operand);
const char* pass_word(Pass pass);

}  // namespace fastconv
