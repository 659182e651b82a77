#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastconv::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(FASTCONV_SIMT_CHECKED)
constexpr size_t kStackBytes = 256 << 10;  // instrumented frames are several times larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
// Tops at equal distances of a power of two would share the sets of the first-level cache: 1.5 times slower.
constexpr size_t kStagger = 320, kStaggered = 16;

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

#if defined(__x86_64__)

// The callee-saved registers of the System V ABI go to the stack that is left. It ends with `ret`, which the processor
// predicts; a jump was 1.5 times slower.
asm(R"(
.text
.p2align 4
.hidden fastconv_switch_stack
.globl fastconv_switch_stack
.type fastconv_switch_stack, @function
fastconv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastconv_switch_stack, .-fastconv_switch_stack
.section .note.GNU-stack,"",@progbits
.text
)");
extern "C" void fastconv_switch_stack(void** save, void* load);

namespace {
void swap(Context& from, Context& to) { fastconv_switch_stack(&from.stack_pointer, to.stack_pointer); }

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*body)()) {
  // body() starts as if called: the stack pointer is 8 below a multiple of 16.
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16) - 2;
  *top = reinterpret_cast<void*>(body);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
}  // namespace

#else

namespace {
void swap(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*body)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, body, 0);
}
}  // namespace

#endif

#if defined(__SANITIZE_ADDRESS__)
void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;  // AddressSanitizer's own, of the flow that is left
  __sanitizer_start_switch_fiber(&fake_stack, to.stack_bottom, to.stack_size);
  swap(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
void arrived() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }

void note_own_stack(Context& context) {
  if (context.stack_bottom) return;
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &context.stack_size);
  pthread_attr_destroy(&attributes);
  context.stack_bottom = bottom;
}
#else
void switch_context(Context& from, Context& to) { swap(from, to); }
void arrived() {}
void note_own_stack(Context&) {}
#endif

void start_context(Context& context, unsigned char* stack, size_t bytes, int index, void (*body)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);  // an abandoned flow leaves its frames poisoned
  context.stack_bottom = stack;
  context.stack_size = bytes;
#endif
  prepare(context, stack, bytes - static_cast<size_t>(index) % kStaggered * kStagger, body);
}

size_t Stacks::bytes() { return kStackBytes; }

unsigned char* Stacks::operator[](int i) const {
  return memory_ + static_cast<size_t>(i) * (kStackBytes + page()) + page();
}

void Stacks::reserve(int count) {
  if (count <= count_) return;
  const size_t each = kStackBytes + page();
  void* memory = mmap(nullptr, each * static_cast<size_t>(count), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  if (memory_) munmap(memory_, each * static_cast<size_t>(count_));
  memory_ = static_cast<unsigned char*>(memory);
  end_ = memory_ + each * static_cast<size_t>(count);
  count_ = count;
  for (int i = 0; i < count; ++i) mprotect(memory_ + static_cast<size_t>(i) * each, page(), PROT_NONE);
}

Stacks::~Stacks() {
  if (memory_) munmap(memory_, (kStackBytes + page()) * static_cast<size_t>(count_));
}

}  // namespace fastconv::simt
