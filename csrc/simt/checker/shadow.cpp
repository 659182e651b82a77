#include "shadow.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "checker.h"
#include "../observer.h"

namespace fastconv::simt {
namespace {

std::string place(const void* instruction, Where where) {
  if (instruction) return source_line(instruction);
  const std::string file = where.file;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line);
}

[[noreturn]] void report(const std::string& what, const Access& a) {
  this_block->fail(what + " at " + place(a.instruction, a.where), {"", 0});
}

const char* verb(bool write) { return write ? "write" : "read"; }

std::string bytes_text(const Access& a) { return std::string(verb(a.write)) + " of " + std::to_string(a.bytes) + " bytes"; }

std::string thread_text(int index) {
  const Index3 i = this_block->thread(index).view.thread;
  return "thread (" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

// --- global buffers ------------------------------------------------------------------------------------------------------

constexpr uint32_t kManyBlocks = ~0u;

struct GlobalCell {
  uint32_t launch = 0;  // of the last write; 0: never written
  uint32_t writer = 0;  // block + 1
  uint32_t read_launch = 0;
  uint32_t reader = 0;  // block + 1, or kManyBlocks
  Moment write;
  Moment read;          // the last one: earlier readers of the same block are forgotten
};

struct Buffer {
  const unsigned char* begin;
  int64_t bytes;
  std::string name;
  bool written;
  int granule;
  std::vector<GlobalCell> cells;
};

std::vector<std::unique_ptr<Buffer>> buffers;  // by address
uint32_t launch_serial = 0;

Buffer* find(const unsigned char* p) {
  auto after = std::upper_bound(buffers.begin(), buffers.end(), p,
                                [](const unsigned char* q, const auto& b) { return q < b->begin; });
  if (after == buffers.begin()) return nullptr;
  Buffer* b = std::prev(after)->get();
  return p < b->begin + b->bytes ? b : nullptr;
}

// Constants of this very library: its segments that cannot be written.
bool in_library(const unsigned char* p) {
  using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;
  static const Ranges constants = [] {
    Ranges found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          Ranges all;
          bool here = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& segment = info->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD) continue;
            const uintptr_t begin = info->dlpi_addr + segment.p_vaddr, end = begin + segment.p_memsz;
            const auto code = reinterpret_cast<uintptr_t>(&in_library);
            here = here || (code >= begin && code < end);
            if (!(segment.p_flags & PF_W)) all.emplace_back(begin, end);
          }
          if (here) *static_cast<Ranges*>(data) = all;
          return here ? 1 : 0;
        },
        &found);
    return found;
  }();
  const auto a = reinterpret_cast<uintptr_t>(p);
  for (const auto& [begin, end] : constants)
    if (a >= begin && a < end) return true;
  return false;
}

std::string nearest(const unsigned char* p) {
  const Buffer* best = nullptr;
  int64_t distance = 0;
  for (const auto& b : buffers) {
    const int64_t d = p < b->begin ? b->begin - p : p - (b->begin + b->bytes) + 1;
    if (!best || d < distance) best = b.get(), distance = d;
  }
  if (!best) return "no buffer is registered";
  if (p < best->begin) return std::to_string(distance) + " bytes before '" + best->name + "'";
  return std::to_string(distance - 1) + " bytes past the end of '" + best->name + "' (" + std::to_string(best->bytes) +
         " bytes)";
}

uint32_t block_number() {
  const Self& s = *self;
  return (s.block.z * s.grid_size.y + s.block.y) * s.grid_size.x + s.block.x + 1;
}

thread_local BlockShadow block_shadow;

}  // namespace

std::string source_line(const void* address) {
  Dl_info info;
  char text[64];
  std::snprintf(text, sizeof text, "%p", address);
  if (!dladdr(address, &info) || !info.dli_fname) return text;
  // A return address: the call is before it.
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  std::snprintf(text, sizeof text, "%#lx", static_cast<unsigned long>(offset));
  const std::string command = std::string("addr2line -i -e '") + info.dli_fname + "' " + text + " 2>/dev/null";
  std::string lines;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char part[512];
    while (size_t n = fread(part, 1, sizeof part, pipe)) lines.append(part, n);
    pclose(pipe);
  }
  // The innermost line first; then the lines it was inlined into, of which the kernel's own says most.
  std::string all;
  size_t begin = 0;
  for (size_t end; (end = lines.find('\n', begin)) != std::string::npos; begin = end + 1) {
    std::string one = lines.substr(begin, end - begin);
    if (one.find("??") != std::string::npos || one.find("/include/") != std::string::npos) continue;
    one = one.substr(one.find_last_of('/') + 1);
    one = one.substr(0, one.find(' '));
    if (one.find("device.h:") == 0 || one.find("runtime.cuh:") == 0) continue;
    all += (all.empty() ? "" : ", inlined at ") + one;
  }
  return all.empty() ? text : all;
}

BlockShadow& shadow() { return block_shadow; }

void register_buffer(const void* begin, int64_t bytes, const char* name, bool written, int granule) {
  if (bytes <= 0) return;
  auto b = std::make_unique<Buffer>();
  b->begin = static_cast<const unsigned char*>(begin);
  b->bytes = bytes;
  b->name = name;
  b->written = written;
  b->granule = granule;
  b->cells.resize(static_cast<size_t>((bytes + granule - 1) / granule + 1));
  buffers.push_back(std::move(b));
  std::sort(buffers.begin(), buffers.end(), [](const auto& l, const auto& r) { return l->begin < r->begin; });
}

void forget_buffers() { buffers.clear(); }

bool check_global(const Access& a) {
  Buffer* b = find(a.address);
  if (!b) {
    const Launch& launch = this_block->launch();
    const auto* call = static_cast<const unsigned char*>(launch.call);
    const bool argument = a.address >= call && a.address < call + launch.call_bytes;
    const auto* own = reinterpret_cast<const unsigned char*>(&this_block->thread(0));
    const auto* own_end = reinterpret_cast<const unsigned char*>(&this_block->thread(0) + this_block->thread_count());
    const auto* pointer = reinterpret_cast<const unsigned char*>(&self);
    if (argument || (a.address >= own && a.address < own_end) || a.address == pointer || in_library(a.address)) return false;
    report("out of bounds: " + bytes_text(a) + ", " + nearest(a.address), a);
  }
  const int64_t offset = a.address - b->begin;
  if (offset + a.bytes > b->bytes)
    report("out of bounds: " + bytes_text(a) + " that ends past '" + b->name + "' (" + std::to_string(b->bytes) + " bytes)",
           a);
  const uint32_t me = block_number();
  const Moment now = block_shadow.now();
  for (int64_t g = offset / b->granule; g <= (offset + a.bytes - 1) / b->granule; ++g) {
    GlobalCell& c = b->cells[static_cast<size_t>(g)];
    const std::string::size_type at = static_cast<std::string::size_type>(g * b->granule);
    const auto where = [&] { return " of '" + b->name + "', byte " + std::to_string(at); };
    if (c.launch == launch_serial && c.writer != me)
      report(std::string("race between blocks: ") + verb(a.write) + where() + ", which block " +
                 std::to_string(c.writer - 1) + " writes in the same launch",
             a);
    if (c.launch == launch_serial && c.write.thread != now.thread && !block_shadow.ordered(c.write))
      report(std::string("race: ") + verb(a.write) + where() + ", which " + thread_text(c.write.thread) +
                 " writes without a barrier between;",
             a);
    if (a.write) {
      if (c.read_launch == launch_serial && c.reader != me)
        report("race between blocks: write" + where() + ", which " +
                   (c.reader == kManyBlocks ? std::string("other blocks read") : "block " + std::to_string(c.reader - 1) + " reads") +
                   " in the same launch",
               a);
      if (c.read_launch == launch_serial && c.read.thread != now.thread && !block_shadow.ordered(c.read))
        report("race: write" + where() + ", which " + thread_text(c.read.thread) + " reads without a barrier between;", a);
      c.writer = me;
      c.write = now;
      c.launch = launch_serial;
    } else {
      if (!b->written && c.launch == 0) report("read" + where() + ", which nothing has written", a);
      if (c.read_launch != launch_serial) {
        c.reader = me;
        c.read_launch = launch_serial;
      } else if (c.reader != me) {
        c.reader = kManyBlocks;
      }
      c.read = now;
    }
  }
  return true;
}

void check_copy(const Copy& copy) {
  const auto* to = static_cast<const unsigned char*>(copy.shared);
  if (copy.valid > 0)
    check_global({static_cast<const unsigned char*>(copy.global), copy.valid, false, nullptr, copy.where});
  block_shadow.check_shared({to, copy.bytes, true, nullptr, copy.where});
}

// --- one block -----------------------------------------------------------------------------------------------------------

void BlockShadow::begin(Block& block) {
  block_ = &block;
  ++serial_;
  ++epoch_;
  clocks_.assign(static_cast<size_t>(block.thread_count()), 1);
  knowledge_.assign(static_cast<size_t>(block.thread_count()), nullptr);
  passed_.assign(16, {});
}

Moment BlockShadow::now() const {
  const int me = block_->running().index;
  return {clocks_[static_cast<size_t>(me)], static_cast<uint16_t>(me)};
}

bool BlockShadow::ordered(Moment earlier) const {
  const int me = block_->running().index;
  if (earlier.thread == me) return true;
  const Knowledge& known = knowledge_[static_cast<size_t>(me)];
  return known && (*known)[earlier.thread] >= earlier.clock;
}

void BlockShadow::met(Thread* const* threads, int count, int id) {
  auto joined = std::make_shared<std::vector<uint32_t>>(clocks_.size(), 0);
  const auto take = [&](const std::vector<uint32_t>& v) {
    for (size_t i = 0; i < v.size(); ++i) (*joined)[i] = std::max((*joined)[i], v[i]);
  };
  const std::vector<uint32_t>* last = nullptr;
  for (int i = 0; i < count; ++i) {
    const auto& known = knowledge_[static_cast<size_t>(threads[i]->index)];
    if (known && known.get() != last) take(*known);
    last = known.get();
  }
  if (id >= 0 && !passed_[static_cast<size_t>(id)].empty()) {
    take(passed_[static_cast<size_t>(id)]);
    passed_[static_cast<size_t>(id)].clear();
  }
  for (int i = 0; i < count; ++i) {
    const auto t = static_cast<size_t>(threads[i]->index);
    (*joined)[t] = std::max((*joined)[t], clocks_[t]);
  }
  const Knowledge shared = joined;
  for (int i = 0; i < count; ++i) {
    const auto t = static_cast<size_t>(threads[i]->index);
    knowledge_[t] = shared;
    ++clocks_[t];
  }
  if (count == static_cast<int>(clocks_.size())) ++epoch_;
}

void BlockShadow::passed(const Thread& thread, int id) {
  auto& all = passed_[static_cast<size_t>(id)];
  all.resize(clocks_.size(), 0);
  const auto t = static_cast<size_t>(thread.index);
  if (const Knowledge& known = knowledge_[t])
    for (size_t i = 0; i < all.size(); ++i) all[i] = std::max(all[i], (*known)[i]);
  all[t] = clocks_[t]++;
}

void BlockShadow::check_shared(const Access& a) {
  const int64_t offset = a.address - block_->shared();
  if (offset < 0 || offset + a.bytes > block_->shared_used())
    report("out of bounds: " + bytes_text(a) + " at byte " + std::to_string(offset) + " of the block's " +
               std::to_string(block_->shared_used()) + " bytes of shared memory",
           a);
  const int64_t last = (offset + a.bytes - 1) / kGranule;
  if (static_cast<int64_t>(cells_.size()) <= last) cells_.resize(static_cast<size_t>(last + 1));
  const Moment me = now();
  for (int64_t g = offset / kGranule; g <= last; ++g) {
    Cell& c = cells_[static_cast<size_t>(g)];
    const auto where = [&] { return " of shared memory, byte " + std::to_string(g * kGranule); };
    if (c.block != serial_) {
      c.block = serial_;
      c.write = {};
      c.readers.clear();
    }
    if (c.epoch != epoch_) {
      c.epoch = epoch_;
      c.readers.clear();  // a barrier of all threads lies between
    }
    if (c.write.clock == 0 && !a.write) report("read" + where() + ", which nothing has written", a);
    if (c.write.clock != 0 && !ordered(c.write))
      report(std::string("race: ") + verb(a.write) + where() + ", which " + thread_text(c.write.thread) + " writes at " +
                 place(c.instruction, c.where) + " without a barrier between;",
             a);
    if (a.write) {
      for (const Moment& r : c.readers)
        if (!ordered(r))
          report("race: write" + where() + ", which " + thread_text(r.thread) + " reads without a barrier between;",
                 a);
      c.readers.clear();
      c.write = me;
      c.instruction = a.instruction;
      c.where = a.where;
    } else if (c.readers.empty() || c.readers.back().thread != me.thread) {
      c.readers.push_back(me);
    } else {
      c.readers.back() = me;
    }
  }
}

// --- what the runtime tells ------------------------------------------------------------------------------------------------

namespace observer {

void launch_begins(const Launch&) { ++launch_serial; }
void launch_ends() {}
void block_begins(Block& block) { block_shadow.begin(block); }
void block_ends(Block& block) { traffic_log::flush(block); }
void met(Block& block, Thread* const* threads, int count, int id) {
  block_shadow.met(threads, count, id);
  if (count == block.thread_count()) traffic_log::flush(block);
}
void passed(Block&, const Thread& thread, int id) { block_shadow.passed(thread, id); }
void copied(Block&, const Copy& copy) { check_copy(copy); }

}  // namespace observer
}  // namespace fastconv::simt
