// ONNX Runtime: a velocity graph, run through two bindings in turn. The state exists twice: one run reads the first
// copy and writes the second, and the next run does the reverse. So nothing is copied, and no run reads memory that it
// writes.
#pragma once

#include "backends/continuous_runner.hpp"
#include "backends/onnxruntime/session.hpp"

namespace starflow {

class OnnxRuntimeContinuousRunner : public ContinuousRunner {
 public:
  OnnxRuntimeContinuousRunner(std::unique_ptr<Session> session, const Graph& graph);

  void condition(const std::string& role, const void* values) override;
  void start(const float* x) override;
  void load(const Pass* passes, std::size_t count) override;
  void advance(int passes) override;
  const float* read() const override { return fetch(state_[turn_].at("x")); }
  const float* velocity() const override { return fetch(fixed_.at("velocity")); }
  void move(const float* point) override;

 private:
  const float* fetch(const Memory& memory) const { return static_cast<const float*>(session_->read(memory, fetched_)); }

  std::unique_ptr<Session> session_;
  std::map<std::string, Memory> fixed_, state_[2];  // by name
  mutable std::vector<std::byte> fetched_;
  std::vector<Pass> table_;
  std::vector<Binding> bindings_;
  std::size_t turn_ = 0;  // which state the next run reads
};

}  // namespace starflow
