#include "gpu.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace simulated {
namespace {

constexpr unsigned char poison = 0xFF;  // NaN in every floating type, -1 in every integer type
constexpr std::size_t alignment = 256, gap = 4096;

}  // namespace

thread_local bool Machine::selected = false;

std::string setting(const char* name, const char* otherwise) {
  const char* given = std::getenv(name);
  return given == nullptr ? otherwise : given;
}

void Region::check_written(const std::string& what) const {
  const auto first = allocation->written.begin() + static_cast<std::ptrdiff_t>(start);
  if (std::count(first, first + static_cast<std::ptrdiff_t>(bytes), 1) != static_cast<std::ptrdiff_t>(bytes))
    Machine::violation(what + " is read before anything was written there");
}

void Region::mark_written() const {
  std::fill_n(allocation->written.begin() + static_cast<std::ptrdiff_t>(start), bytes, static_cast<char>(1));
}

bool Region::overlaps(const Region& other) const {
  return allocation == other.allocation && start < other.start + other.bytes && other.start < start + bytes;
}

void Operation::check_alive() const {
  for (const Region& region : regions) {
    if (region.allocation->freed) Machine::violation(what + ": its memory was freed");
  }
  for (const std::weak_ptr<int>& needed : needs) {
    if (needed.expired()) Machine::violation(what + ": its execution context was released");
  }
}

Machine& Machine::get() {
  static Machine machine;
  return machine;
}

void Machine::violation(const std::string& what) {
  get().violations += what + "\n";
  throw std::logic_error("violation: " + what);
}

void Machine::check_selected(const std::string& what) const {
  if (!selected) violation(what + " in a thread that has not chosen its GPU");
}

void Machine::check_not_capturing(const std::string& what) {
  for (const auto& [handle, stream] : streams_) {
    if (stream.capturing && stream.thread == std::this_thread::get_id())
      violation(what + " while this thread captures a stream");
  }
}

void* Machine::allocate(std::size_t bytes, bool pinned) {
  check_selected("allocate");
  check_not_capturing("allocate");
  if (bytes == 0) violation("allocate: 0 bytes have no address");
  if (!pinned && used + bytes > std::stoull(setting("SIMULATED_MEMORY", "1073741824"))) return nullptr;
  auto made = std::make_shared<Allocation>();
  made->bytes = bytes;
  made->pinned = pinned;
  made->content.reset(static_cast<unsigned char*>(::operator new[](bytes, std::align_val_t{alignment})),
                      [](unsigned char* memory) { ::operator delete[](memory, std::align_val_t{alignment}); });
  std::memset(made->content.get(), poison, bytes);
  made->written.assign(bytes, static_cast<char>(pinned));  // the host writes unseen
  auto address = reinterpret_cast<std::uintptr_t>(made->content.get());
  if (!pinned) {
    used += bytes;
    address = next_;
    next_ += (bytes + alignment - 1) / alignment * alignment + gap;
  }
  allocations_[address] = made;
  return reinterpret_cast<void*>(address);
}

Region Machine::region(const void* address, std::size_t bytes, bool pinned, const std::string& what) {
  const auto first = reinterpret_cast<std::uintptr_t>(address);
  auto found = allocations_.upper_bound(first);
  if (found == allocations_.begin()) violation(what + ": not within any allocation");
  const auto& [start, allocation] = *--found;
  if (first + bytes > start + allocation->bytes) violation(what + ": not within any allocation");
  if (allocation->pinned != pinned) violation(what + (pinned ? ": not pinned memory" : ": not memory of the device"));
  return {allocation, first - start, bytes};
}

void Machine::free(void* address) {
  check_not_capturing("free");
  const auto found = allocations_.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == allocations_.end()) violation("free: not the beginning of an allocation");
  for (const auto& [handle, stream] : streams_) {
    for (const Operation& operation : stream.pending) {
      for (const Region& region : operation.regions) {
        if (region.allocation == found->second) violation("free: " + operation.what + " still uses the memory");
      }
    }
  }
  found->second->freed = true;
  if (!found->second->pinned) used -= found->second->bytes;
  allocations_.erase(found);
}

void* Machine::create_stream() {
  check_selected("create_stream");
  check_not_capturing("create_stream");
  void* handle = ::operator new(1);
  streams_[handle];
  return handle;
}

Machine::Stream& Machine::stream(void* handle, const std::string& what) {
  if (streams_.count(handle) == 0) violation(what + ": there is no such stream");
  return streams_[handle];
}

void Machine::destroy_stream(void* handle) {
  Stream& found = stream(handle, "destroy_stream");
  if (!found.pending.empty() || found.capturing) violation("destroy_stream: it is still at work");
  streams_.erase(handle);
  ::operator delete(handle);
}

void Machine::enqueue(void* handle, Operation operation) {
  check_selected(operation.what);
  Stream& found = stream(handle, operation.what);
  operation.check_alive();
  if (found.capturing) {
    if (found.thread != std::this_thread::get_id())
      violation(operation.what + " enters a stream that another thread captures");
    found.recorded.push_back(std::move(operation));
    return;
  }
  check_not_capturing(operation.what + " in another stream");
  found.pending.push_back(std::move(operation));
}

void Machine::synchronize(void* handle) {
  check_not_capturing("synchronize");
  std::vector<Operation> pending;
  pending.swap(stream(handle, "synchronize").pending);
  for (const Operation& operation : pending) {
    operation.check_alive();
    operation.run();
  }
}

void Machine::begin_capture(void* handle) {
  check_not_capturing("begin_capture");
  Stream& found = stream(handle, "begin_capture");
  found.capturing = true;
  found.thread = std::this_thread::get_id();
}

void* Machine::end_capture(void* handle) {
  Stream& found = stream(handle, "end_capture");
  if (!found.capturing || found.thread != std::this_thread::get_id())
    violation("end_capture: this thread captures nothing there");
  found.capturing = false;
  void* graph = ::operator new(1);
  graphs_[graph].swap(found.recorded);
  return graph;
}

bool Machine::is_capturing(void* handle) { return stream(handle, "is_capturing").capturing; }

void Machine::launch(void* graph, void* handle) {
  if (graphs_.count(graph) == 0) violation("launch: there is no such graph");
  for (const Operation& operation : graphs_[graph]) enqueue(handle, operation);
}

void Machine::destroy_graph(void* graph) {
  if (graphs_.erase(graph) == 0) violation("destroy_graph: there is no such graph");
  ::operator delete(graph);
}

std::size_t Machine::filled(std::size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  for (const auto& each : streams_) synchronize(each.first);
  std::size_t found = 0;
  for (const auto& [address, allocation] : allocations_) {
    const unsigned char *first = allocation->content.get(), *end = first + allocation->bytes;
    if (!allocation->pinned && allocation->bytes == bytes && std::any_of(first, end, [](auto byte) { return byte != 0; }))
      ++found;
  }
  return found;
}

std::string Machine::leaks() const {
  return allocations_.empty() && streams_.empty() && graphs_.empty()
             ? ""
             : std::to_string(allocations_.size()) + " allocations, " + std::to_string(streams_.size()) + " streams, " +
                   std::to_string(graphs_.size()) + " graphs";
}

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

class SimulatedGpu : public starflow::Gpu {
 public:
  std::string name() const override { return "Simulated GPU"; }
  std::string compute_capability() const override { return setting("SIMULATED_CAPABILITY", "8.9"); }
  void select() override { Machine::selected = true; }
  std::pair<std::size_t, std::size_t> memory() override {
    const std::size_t total = std::stoull(setting("SIMULATED_MEMORY", "1073741824"));
    return {total - machine_.used, total};
  }

  starflow::Held allocate(std::size_t bytes) override { return allocated(bytes, false); }
  starflow::Held allocate_pinned(std::size_t bytes) override { return allocated(bytes, true); }
  starflow::Held create_stream() override {
    const Lock lock(machine_.mutex);
    return {machine_.create_stream(), [this](void* stream) { freed([&] { machine_.destroy_stream(stream); }); }};
  }

  void upload(void* device, const void* pinned, std::size_t bytes, void* stream) override {
    const Lock lock(machine_.mutex);
    const Region source = machine_.region(pinned, bytes, true, "upload"),
                 target = machine_.region(device, bytes, false, "upload");
    const std::vector<unsigned char> promised(source.data(), source.data() + bytes);
    enqueue("upload", stream, {source, target}, [=] {
      if (std::memcmp(promised.data(), source.data(), bytes) != 0)
        Machine::violation("upload: the host changed the source while the copy was pending");
      std::memcpy(target.data(), source.data(), bytes);
      target.mark_written();
    });
  }
  void download(void* pinned, const void* device, std::size_t bytes, void* stream) override {
    const Lock lock(machine_.mutex);
    const Region source = machine_.region(device, bytes, false, "download"),
                 target = machine_.region(pinned, bytes, true, "download");
    enqueue("download", stream, {source, target}, [=] {
      source.check_written("download");
      std::memcpy(target.data(), source.data(), bytes);
    });
    std::memset(target.data(), poison, bytes);  // whoever looks before the stream is synchronised finds this
  }
  void copy(void* to, const void* from, std::size_t bytes, void* stream) override {
    const Lock lock(machine_.mutex);
    const Region source = machine_.region(from, bytes, false, "copy"),
                 target = machine_.region(to, bytes, false, "copy");
    if (source.overlaps(target)) Machine::violation("copy: source and target overlap");
    enqueue("copy", stream, {source, target}, [=] {
      source.check_written("copy");
      std::memcpy(target.data(), source.data(), bytes);
      target.mark_written();
    });
  }
  void zero(void* device, std::size_t bytes, void* stream) override {
    const Lock lock(machine_.mutex);
    const Region target = machine_.region(device, bytes, false, "zero");
    enqueue("zero", stream, {target}, [=] {
      std::memset(target.data(), 0, bytes);
      target.mark_written();
    });
  }
  void synchronize(void* stream) override {
    const Lock lock(machine_.mutex);
    ++machine_.counts["synchronize"];
    machine_.synchronize(stream);
  }
  void drain(void* stream) noexcept override {
    freed([&] { machine_.synchronize(stream); });
  }

  starflow::Held capture(void* stream, const std::function<void()>& work) override {
    const Lock lock(machine_.mutex);
    machine_.begin_capture(stream);
    const auto free = [this](void* graph) { freed([&] { machine_.destroy_graph(graph); }); };
    try {
      work();
      if (setting("SIMULATED_REFUSES", "") == "capture")
        throw starflow::CaptureRefused("operation not permitted when stream is capturing");
    } catch (...) {
      free(machine_.end_capture(stream));
      throw;
    }
    ++machine_.counts["capture"];
    return {machine_.end_capture(stream), free};
  }
  void launch(void* graph, void* stream) override {
    const Lock lock(machine_.mutex);
    ++machine_.counts["launch"];
    machine_.launch(graph, stream);
  }

 private:
  starflow::Held allocated(std::size_t bytes, bool pinned) {
    const Lock lock(machine_.mutex);
    void* made = machine_.allocate(bytes, pinned);
    if (made == nullptr) return {};
    return {made, [this](void* memory) { freed([&] { machine_.free(memory); }); }};
  }

  void enqueue(const char* what, void* stream, std::vector<Region> regions, std::function<void()> run) {
    ++machine_.counts[what];
    machine_.enqueue(stream, {what, std::move(run), std::move(regions), {}});
  }

  // What cannot report an error; its violations are remembered.
  template <typename Work>
  void freed(const Work& work) noexcept {
    const Lock lock(machine_.mutex);
    try {
      work();
    } catch (const std::logic_error&) {
      return;
    }
  }

  Machine& machine_ = Machine::get();
};

}  // namespace
}  // namespace simulated

namespace starflow {

const bool has_tensorrt = true;

std::unique_ptr<Gpu> open_gpu() { return std::make_unique<simulated::SimulatedGpu>(); }

}  // namespace starflow

extern "C" {

__attribute__((visibility("default"))) const char* simulated_violations() {
  return simulated::Machine::get().violations.c_str();
}

__attribute__((visibility("default"))) const char* simulated_leaks() {
  static std::string found;
  found = simulated::Machine::get().leaks();
  return found.c_str();
}

// How many allocations of that many bytes hold something else than zeros, once all pending work is done.
__attribute__((visibility("default"))) std::size_t simulated_filled(std::size_t bytes) {
  return simulated::Machine::get().filled(bytes);
}

__attribute__((visibility("default"))) std::size_t simulated_count(const char* call) {
  return simulated::Machine::get().counts[call];
}
}
