// A GPU and a TensorRT on it, as thin as the native loop needs them. `nvidia.cpp` is the real one. Tests link one that
// is held to what the documentation of CUDA and TensorRT says.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bundle/manifest.hpp"

namespace starflow {

// Something of the device, freed with its owner: memory, a stream, an instantiated CUDA graph.
using Held = std::unique_ptr<void, std::function<void(void*)>>;

// Work that cannot become a CUDA graph, and why. The stream is as it was before.
struct CaptureRefused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One GPU. A call that fails is a backend error. Work in a stream is over when the stream has been synchronised.
class Gpu {
 public:
  virtual ~Gpu() = default;
  virtual std::string name() const = 0;
  virtual std::string compute_capability() const = 0;        // such as "8.9"
  virtual void select() = 0;                                 // makes it the calling thread's current GPU
  virtual std::pair<std::size_t, std::size_t> memory() = 0;  // free and total bytes

  virtual Held allocate(std::size_t bytes) = 0;  // on the device, aligned to 256 bytes; null if it has too little
  virtual Held allocate_pinned(std::size_t bytes) = 0;  // on the host, for copies without waiting
  virtual Held create_stream() = 0;                     // that waits for no other stream

  virtual void upload(void* device, const void* pinned, std::size_t bytes, void* stream) = 0;
  virtual void download(void* pinned, const void* device, std::size_t bytes, void* stream) = 0;
  virtual void copy(void* target, const void* source, std::size_t bytes, void* stream) = 0;  // on the device
  virtual void zero(void* device, std::size_t bytes, void* stream) = 0;
  virtual void synchronize(void* stream) = 0;     // waits, and reports failed work
  virtual void drain(void* stream) noexcept = 0;  // waits until all work is over, done or failed

  // Records what `work` puts into a stream, without running it; CaptureRefused if that cannot be. The rules of capturing
  // hold for this thread alone.
  virtual Held capture(void* stream, const std::function<void()>& work) = 0;
  virtual void launch(void* graph, void* stream) = 0;
};

// An input or output of an engine. A size that depends on the run is -1, as in `TensorSpec`.
struct EngineTensor {
  std::string name;
  bool is_input = false, on_device = false;
  std::string type;  // as in manifests; else the engine's own name
  std::vector<std::int64_t> shape;
  std::string updates;  // the input whose memory this output shares; empty if there is none
};

using Shapes = std::array<std::vector<std::int64_t>, 3>;  // smallest, optimal and largest

// What runs an engine with one setting of profile, shapes and addresses. False means that TensorRT refuses.
class ExecutionContext {
 public:
  virtual ~ExecutionContext() = default;
  virtual bool set_profile(int profile, void* stream) = 0;
  virtual bool set_shape(const std::string& name, const std::vector<std::int64_t>& shape) = 0;
  virtual bool set_address(const std::string& name, void* device) = 0;
  virtual void set_scratch(void* device, std::size_t bytes) = 0;
  virtual bool is_capturable(void* stream) = 0;  // after the first run
  virtual bool enqueue(void* stream) = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::vector<EngineTensor> tensors() const = 0;
  virtual int profiles() const = 0;
  virtual Shapes profile_shapes(const std::string& input, int profile) const = 0;
  virtual std::size_t scratch_bytes() const = 0;                   // of a run besides its tensors, for any profile
  virtual std::unique_ptr<ExecutionContext> create_context() = 0;  // with scratch memory of the caller; null if refused
};

class Tensorrt {
 public:
  virtual ~Tensorrt() = default;
  virtual std::string version() const = 0;                                   // as in build records
  virtual std::unique_ptr<Engine> deserialise(const std::string& path) = 0;  // null if refused
  virtual std::string last_error() const = 0;                                // in one line
};

// The GPU of this machine; a backend error if it cannot be used, or this library was built without TensorRT.
std::unique_ptr<Gpu> open_gpu();

// A TensorRT by its flavour, `tensorrt` or `tensorrt-rtx`, from a library or from where it is usually found; a backend
// error if it does not load.
std::unique_ptr<Tensorrt> load_tensorrt(const std::string& flavour, const std::string& library);

// Whether this library was built with TensorRT.
extern const bool has_tensorrt;

}  // namespace starflow
