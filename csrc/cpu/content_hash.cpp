#include "content_hash.h"

namespace fastconv::cpu {

Hash128 content_hash(const void* data, int64_t bytes) { return FASTCONV_DISPATCH(hash_block, data, bytes); }

}  // namespace fastconv::cpu
