#include "processor.h"

#include <unistd.h>

namespace fastconv::cpu {
namespace {

Processor found() {
  Processor m;
  m.multiply_adds = FASTCONV_DISPATCH(multiply_add_quotient) < 2 ? 2 : 1;
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes >= 128 << 10) m.second_level = bytes;
#endif
  return m;
}

Processor& the_processor() {
  static Processor m = found();
  return m;
}

}  // namespace

const Processor& processor() { return the_processor(); }
void set_processor(const Processor& m) { the_processor() = m; }

}  // namespace fastconv::cpu
