// The tensors of a graph in GPU memory, each allocated once.
#pragma once

#include <map>

#include "backends/tensorrt/device.hpp"

namespace starflow {

// One stream of a GPU.
struct Queue {
  Gpu& gpu;
  void* stream;
};

// Waits until all work of a queue is over: as the last member of an owner, before what that work uses is freed.
struct Drain {
  Queue queue;
  ~Drain() { queue.gpu.drain(queue.stream); }
};

// Where a run finds its inputs and outputs, by their names.
using Addresses = std::map<std::string, void*>;

// Device memory of `what`; a backend error if there is too little.
Held allocate(Gpu& gpu, std::size_t bytes, const std::string& what);

// Every input and output of one graph. A tensor whose shape depends on the number of tokens has room for `most_tokens`;
// smaller runs use its beginning. An output that updates an input shares its memory. Every tensor but
// the caches has pinned host memory for copies; a cache, which leaves the device only while a new engine is looked at,
// has it until it is cleared.
class GraphBuffers {
 public:
  GraphBuffers(Queue queue, const Graph& graph, std::int64_t most_tokens);

  // Fills a tensor for `count` tokens, and waits until it is filled.
  void store(const std::string& name, const void* values, std::int64_t count);
  // Its content, in host memory that the next `store` or `fetch` of it overwrites.
  const void* fetch(const std::string& name, std::int64_t count) const;
  void clear_caches();

  void* address(const std::string& name) const { return buffer(name).device.get(); }
  Addresses addresses() const;  // of all inputs and outputs
  std::size_t bytes(const std::string& name, std::int64_t count) const;

 private:
  struct Buffer {
    const TensorSpec* spec;
    Held device;
    mutable Held pinned;
  };

  const Buffer& buffer(const std::string& name) const;
  void* pinned(const Buffer& buffer) const;

  Queue queue_;
  std::int64_t most_tokens_;
  std::map<std::string, Buffer> buffers_;      // by the name of the tensor
  std::map<std::string, std::string> shared_;  // from an output to the input that it updates
  Drain drain_;
};

}  // namespace starflow
