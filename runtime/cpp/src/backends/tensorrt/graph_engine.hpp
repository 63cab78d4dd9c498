// A built engine on a GPU, and its runs.
#pragma once

#include "backends/backend.hpp"
#include "backends/tensorrt/buffers.hpp"
#include "bundle/build_record.hpp"

namespace starflow {

// Runs that are launched together: as one CUDA graph or, where capturing was refused, enqueued anew for each launch.
struct CapturedRuns {
  std::vector<std::unique_ptr<ExecutionContext>> contexts;  // they must live as long as the graph
  Held graph;
  std::function<void()> work;

  void launch(const Queue& queue, int times) const;
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
  // `warn` is told of runs that cannot be captured.
  GraphEngine(Gpu& gpu, Tensorrt& tensorrt, const Graph& graph, const BuildRecord& record, const std::string& path,
              std::int64_t longest, Warn warn);

  const Graph& graph() const { return graph_; }
  std::int64_t max_tokens() const { return record_.max_tokens(); }  // of one run
  std::size_t scratch_bytes() const { return engine_->scratch_bytes(); }

  // Whether steps (profile 0) take no condition tokens; if so, a prefill of one token runs in another profile.
  bool steps_lack_condition() const;

  // Captures runs of `count` tokens, one after the other, at the addresses of each. `feed_back` adds the copies that
  // prepare the next launch. `conditioned` says whether a run may hold positions of the condition.
  CapturedRuns capture(std::int64_t count, bool conditioned, const std::vector<Addresses>& runs_at,
                       const Scratch& scratch, void* stream, const std::function<void()>& feed_back);

 private:
  bool takes_no_condition(const TensorSpec& spec) const;
  void check(const std::string& path, std::int64_t longest) const;
  std::unique_ptr<ExecutionContext> context(std::int64_t count, bool conditioned, const Addresses& addresses,
                                            const Scratch& scratch, void* stream);
  void assert_done(bool done, const std::string& what) const;

  Gpu& gpu_;
  Tensorrt& tensorrt_;
  const BuildRecord& record_;
  const Graph& graph_;
  Warn warn_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace starflow
