// Memory of tensors: the host's, or that of an execution provider.
#pragma once

#include <cstddef>
#include <functional>
#include <map>

#include "backends/onnxruntime/provider.hpp"
#include "bundle/manifest.hpp"

namespace starflow {

// Zeroed memory of a tensor, aligned for vector instructions.
class Memory {
 public:
  Memory(const TensorSpec& spec, int count);  // on the host

  void* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }
  bool on_device() const { return on_device_; }

 private:
  friend class DeviceMemory;
  Memory() : data_(nullptr, [](void*) {}) {}

  std::size_t bytes_ = 0;
  bool on_device_ = false;
  std::unique_ptr<void, std::function<void(void*)>> data_;
};

// The memory of a device, through ONNX Runtime alone. A session of one node copies bytes into it and out of it:
// bindings move what lies elsewhere.
class DeviceMemory {
 public:
  DeviceMemory(const OnnxRuntime& library, const Provider& provider);

  Memory allocate(const TensorSpec& spec, int count) const;  // zeroed
  void write(const Memory& target, const void* values) const;
  void read(const Memory& source, void* values) const;
  const OrtMemoryInfo* info() const { return info_.get(); }

 private:
  void copy(void* target, const OrtMemoryInfo* target_info, void* source, const OrtMemoryInfo* source_info,
            std::size_t bytes) const;

  const OnnxRuntime& library_;
  Handle<OrtSession> session_;
  Handle<OrtMemoryInfo> info_, host_;
  Handle<OrtAllocator> allocator_;
};

}  // namespace starflow
