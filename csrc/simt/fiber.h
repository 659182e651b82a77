// Stacks and the switch between them: what makes a CUDA thread cost 30 ns a barrier instead of an OS thread's 5 us.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fastconv::simt {

// A suspended flow of control. On x86-64 its registers lie on its own stack.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* stack_bottom = nullptr;  // AddressSanitizer must be told of every switch
  size_t stack_size = 0;
#endif
};

// Saves the running flow in `from` and continues `to`.
void switch_context(Context& from, Context& to);
// Makes `context` start at body(), which must not return, on the stack [stack, stack + bytes). `index` tells stacks
// apart that lie side by side.
void start_context(Context& context, unsigned char* stack, size_t bytes, int index, void (*body)());
// Notes the running flow's stack in a context that start_context() has not made: an OS thread's own.
void note_own_stack(Context& context);
// To be called first thing in `body`, and whenever switch_context() has returned. Nothing without AddressSanitizer.
void arrived();

// One stack for each thread of a block, each above a page that may not be touched: an overflow is a segmentation fault
// and not a neighbour's data.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  void reserve(int count);  // throws std::bad_alloc
  unsigned char* operator[](int i) const;
  bool hold(const unsigned char* p) const { return p >= memory_ && p < end_; }
  static size_t bytes();

 private:
  unsigned char* memory_ = nullptr;
  unsigned char* end_ = nullptr;
  int count_ = 0;
};

}  // namespace fastconv::simt
