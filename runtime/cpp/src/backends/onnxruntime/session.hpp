// ONNX Runtime sessions, and buffers that are bound to them.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <new>

#include "backends/onnxruntime/library.hpp"
#include "bundle/bundle.hpp"

namespace starflow {

// Zeroed memory of a tensor, aligned for vector instructions.
class Memory {
 public:
  Memory(const TensorSpec& spec, int count);

  void* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, alignment); }
  };

  std::size_t bytes_;
  std::unique_ptr<std::byte[], Free> data_;
};

// Where a run of `count` tokens reads an input or writes an output.
using Place = std::function<void*(const TensorSpec& spec)>;

class Session {
 public:
  // Loads a graph of a bundle. `threads` 0 lets ONNX Runtime choose, one for each core.
  Session(const OnnxRuntime& library, const Bundle& bundle, const File& graph, const File& weights,
          const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs, int threads);

  // The inputs and outputs bound once for runs of `count` tokens. The position output is not: callers count.
  Handle<OrtIoBinding> bind(int count, const Place& input, const Place& output) const;
  void run(const OrtIoBinding* binding) const;

 private:
  void compare(const std::string& what, const std::vector<TensorSpec>& specs, bool is_input) const;
  Handle<OrtValue> tensor(const TensorSpec& spec, int count, void* data) const;

  const OnnxRuntime& library_;
  std::string name_;
  std::vector<TensorSpec> inputs_, outputs_;
  Handle<OrtSession> session_;
  Handle<OrtMemoryInfo> memory_;
};

}  // namespace starflow
