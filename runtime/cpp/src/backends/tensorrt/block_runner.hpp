// TensorRT, a flow block: every buffer is allocated once, and one CUDA graph for each number of tokens is replayed. A
// step feeds the next one on the device, so decoding is launches of one graph, of two steps: nothing is copied, and
// nobody waits until the sequence is read.
#pragma once

#include "backends/block_runner.hpp"
#include "backends/tensorrt/graph_engine.hpp"

namespace starflow {

class TensorrtBlockRunner : public BlockRunner {
 public:
  TensorrtBlockRunner(GraphEngine& engine, const Block& block, const Manifest& manifest, const Scratch& scratch,
                      Queue queue);

  void advance(int steps) override;
  void clear() override { buffers_.clear_caches(); }

 private:
  void store(const std::string& name, const void* values, int count) override { buffers_.store(name, values, count); }
  const void* fetch(const std::string& name, int count) const override { return buffers_.fetch(name, count); }
  void run(int count) override;
  const float* repeat(int count, int passes) override;
  void seek(std::int64_t position) override;
  std::int64_t tell() const override { return position_; }

  // A run and the copies that make the next one the next step or pass; `prefilling` if it may hold the condition.
  const CapturedRuns& runs_of(int count, bool prefilling);
  // Two steps that feed each other: what one writes, the other reads, so that nothing is copied.
  CapturedRuns capture_two_steps();
  void feed_back(int count);

  GraphEngine& engine_;
  const Scratch& scratch_;
  Queue queue_;
  std::size_t batch_;
  std::int64_t prefix_;
  GraphBuffers buffers_;
  std::map<std::pair<int, bool>, CapturedRuns> runs_;  // by number of tokens, and whether the condition is given
  CapturedRuns two_steps_;
  std::int64_t position_ = 0;
  Drain drain_;
};

}  // namespace starflow
