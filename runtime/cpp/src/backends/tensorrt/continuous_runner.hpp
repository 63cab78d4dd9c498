// TensorRT, a velocity graph: one CUDA graph, replayed for every pass. State and table of passes lie on the device, and
// the captured work ends with the copies that make the next launch the next pass.
#pragma once

#include "backends/continuous_runner.hpp"
#include "backends/tensorrt/graph_engine.hpp"

namespace starflow {

class TensorrtContinuousRunner : public ContinuousRunner {
 public:
  TensorrtContinuousRunner(GraphEngine& engine, const Scratch& scratch, Queue queue);

  void condition(const std::string& role, const void* values) override;
  void start(const float* x) override;
  void load(const Pass* passes, std::size_t count) override;
  void advance(int passes) override;
  const float* read() const override { return fetch("x"); }
  const float* velocity() const override { return fetch("velocity"); }
  void move(const float* point) override { condition("point", point); }

 private:
  const float* fetch(const std::string& role) const;
  void feed_back();

  Queue queue_;
  std::map<std::string, std::string> inputs_, outputs_;  // from a role to the name of its tensor
  GraphBuffers buffers_;
  std::vector<Pass> table_;
  CapturedRuns pass_;
  Drain drain_;
};

}  // namespace starflow
