// A built engine on a GPU, and the CUDA graphs of its runs.
#pragma once

#include "backends/tensorrt/buffers.hpp"
#include "bundle/build_record.hpp"

namespace starflow {

// A captured run. The context must live as long as its graph.
struct CapturedRun {
  std::unique_ptr<ExecutionContext> context;
  Held graph;
};

// Device memory for values between a run's inputs and outputs. Runs that share it must share a stream.
struct Scratch {
  Held memory;
  std::size_t bytes = 0;
};

// The engine of one graph, deserialised and compared with the manifest. Addresses are passed without a size, so the
// engine of another graph would not fail: it would write beyond its buffers.
class GraphEngine {
 public:
  // A bundle error if the file is damaged, needs another TensorRT or is not the engine of the graph; a backend error if
  // the GPU has too little memory. `longest` is the largest number of tokens in a run of the graph.
  GraphEngine(Gpu& gpu, Tensorrt& tensorrt, const Graph& graph, const BuildRecord& record, const std::string& path,
              std::int64_t longest);

  const Graph& graph() const { return graph_; }
  std::int64_t max_tokens() const { return record_.max_tokens(); }  // of one run
  std::size_t scratch_bytes() const { return engine_->scratch_bytes(); }

  // Whether steps (profile 0) take no condition tokens; if so, a prefill of one token runs in another profile.
  bool steps_lack_condition() const;

  // Captures a run of `count` tokens as a CUDA graph. `feed_back` adds the copies that prepare the next run. `conditioned`
  // says whether the run may hold positions of the condition.
  CapturedRun capture(std::int64_t count, bool conditioned, const GraphBuffers& buffers, const Scratch& scratch,
                      void* stream, const std::function<void()>& feed_back);

 private:
  bool takes_no_condition(const TensorSpec& spec) const;
  void check(const std::string& path, std::int64_t longest) const;
  void assert_done(bool done, const std::string& what) const;

  Gpu& gpu_;
  Tensorrt& tensorrt_;
  const BuildRecord& record_;
  const Graph& graph_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace starflow
