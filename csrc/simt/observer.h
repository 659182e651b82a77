// What the runtime tells the checker. Without FASTCONV_SIMT_CHECKED nothing is told and nothing is paid.
#pragma once

#include "block.h"

namespace fastconv::simt::observer {

#ifdef FASTCONV_SIMT_CHECKED
void launch_begins(const Launch& launch);
void launch_ends();
void block_begins(Block& block);
void block_ends(Block& block);
// All of `threads` have met: what any of them did before happens before what any of them does next. So does what was
// done before arriving at barrier `id` by those that did not wait there; -1: none.
void met(Block& block, Thread* const* threads, int count, int id);
void passed(Block& block, const Thread& thread, int id);  // arrived at a named barrier and went on
void copied(Block& block, const Copy& copy);  // before the bytes move
void counted(const char* atom);
void read(const void* address, int64_t bytes, const void* instruction);  // by the running thread, in the runtime
#else
inline void launch_begins(const Launch&) {}
inline void launch_ends() {}
inline void block_begins(Block&) {}
inline void block_ends(Block&) {}
inline void met(Block&, Thread* const*, int, int) {}
inline void passed(Block&, const Thread&, int) {}
inline void copied(Block&, const Copy&) {}
inline void counted(const char*) {}
inline void read(const void*, int64_t, const void*) {}
#endif

}  // namespace fastconv::simt::observer
