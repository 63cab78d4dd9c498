// A GPU that does nothing before it is waited for, and then does it to the letter: the latest that a real one might do
// it. Whoever reads a result too early finds poison, and what the documentation forbids is a violation.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backends/tensorrt/device.hpp"

namespace simulated {

struct Allocation {
  std::size_t bytes = 0;
  bool pinned = false, freed = false;
  std::shared_ptr<unsigned char> content;  // of the host, where the device computes
  std::vector<char> written;
};

// Some bytes of an allocation.
struct Region {
  std::shared_ptr<Allocation> allocation;
  std::size_t start = 0, bytes = 0;

  unsigned char* data() const { return allocation->content.get() + start; }
  void check_written(const std::string& what) const;
  void mark_written() const;
  bool overlaps(const Region& other) const;
};

// Work in a stream.
struct Operation {
  std::string what;
  std::function<void()> run;
  std::vector<Region> regions;
  std::vector<std::weak_ptr<int>> needs;  // what must still exist: execution contexts

  void check_alive() const;
};

// Everything on the device. All of it is locked by `mutex`.
class Machine {
 public:
  static Machine& get();

  [[noreturn]] static void violation(const std::string& what);  // throws, and is remembered

  void* allocate(std::size_t bytes, bool pinned);  // null if there is too little memory
  void free(void* address);
  Region region(const void* address, std::size_t bytes, bool pinned, const std::string& what);
  void* create_stream();
  void destroy_stream(void* stream);
  void enqueue(void* stream, Operation operation);
  void synchronize(void* stream);
  void begin_capture(void* stream);
  void* end_capture(void* stream);
  void launch(void* graph, void* stream);
  void destroy_graph(void* graph);
  bool is_capturing(void* stream);
  void check_not_capturing(const std::string& what);
  void check_selected(const std::string& what) const;
  std::size_t filled(std::size_t bytes);  // allocations of a size that hold something else than zeros
  std::string leaks() const;

  std::recursive_mutex mutex;
  std::map<std::string, std::size_t> counts;  // of calls
  std::size_t used = 0;
  std::string violations;
  static thread_local bool selected;  // whether this thread chose its GPU

 private:
  struct Stream {
    std::vector<Operation> pending, recorded;
    bool capturing = false;
    std::thread::id thread;
  };

  Stream& stream(void* handle, const std::string& what);

  std::map<std::uintptr_t, std::shared_ptr<Allocation>> allocations_;
  std::map<void*, Stream> streams_;
  std::map<void*, std::vector<Operation>> graphs_;
  std::uintptr_t next_ = std::uintptr_t{0xDE} << 48;  // no address of the host
};

// A limit or a fault that a test sets in the environment.
std::string setting(const char* name, const char* otherwise);

}  // namespace simulated
