// ONNX Runtime sessions, and buffers that are bound to them.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "backends/onnxruntime/memory.hpp"
#include "bundle/bundle.hpp"

namespace starflow {

constexpr std::int64_t large_weights = 64 << 20;  // bytes; what a run of a large graph reads is more

// Where a run reads an input or writes an output; null leaves an output out.
using Place = std::function<const Memory*(const TensorSpec& spec)>;

// The inputs and outputs of a session for runs of one number of tokens.
struct Binding {
  Handle<OrtIoBinding> io;
  // On a device, inputs that no run updates in place are bound anew for every run. ONNX Runtime reads some of them on
  // the host, such as the position, since shapes depend on it: what lies elsewhere is copied when it is bound.
  std::vector<std::pair<std::string, Handle<OrtValue>>> anew;
};

class Session {
 public:
  // Loads a graph of a bundle, of which a run reads `weight_bytes`. `threads` 0 lets ONNX Runtime choose, one for each core. `device` is the memory of a
  // provider that has its own, else null.
  Session(const OnnxRuntime& library, const Bundle& bundle, const File& graph, const File& weights,
          const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs, const Provider& provider,
          int threads, std::int64_t weight_bytes, const DeviceMemory* device);

  // The inputs and outputs bound once for runs of `count` tokens. The position output is not: callers count.
  Binding bind(int count, const Place& input, const Place& output) const;
  void run(const Binding& binding) const;

  // Memory where this session's runs take it, and copies of all of it.
  Memory allocate(const TensorSpec& spec, int count) const;
  void write(const Memory& target, const void* values) const;
  // The content on the host: `kept` holds it if it lies on a device.
  const void* read(const Memory& source, std::vector<std::byte>& kept) const;

 private:
  void compare(const std::string& what, const std::vector<TensorSpec>& specs, bool is_input) const;
  Handle<OrtValue> tensor(const TensorSpec& spec, int count, const Memory& memory) const;

  const OnnxRuntime& library_;
  std::string name_;
  std::vector<TensorSpec> inputs_, outputs_;
  Handle<OrtSession> session_;
  Handle<OrtMemoryInfo> host_;
  const DeviceMemory* device_;
};

}  // namespace starflow
