// Memory in huge pages, where the system grants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fastconv::bindings {

// Asks for huge pages for those that lie wholly in [data, data + bytes), if that is worth a system call: new memory is
// then cleared by the system 2 MB at a time instead of 4 KB, and read with fewer walks through the page table. Advice:
// nothing is lost where it is not taken.
void advise_huge_pages(void* data, size_t bytes);

// New memory at a cache line, from 2 MB on in huge pages. Throws c10::Error naming `purpose` if there is none.
std::shared_ptr<void> new_memory(int64_t bytes, const char* purpose);

}  // namespace fastconv::bindings
