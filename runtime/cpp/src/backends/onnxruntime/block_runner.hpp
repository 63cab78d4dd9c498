// ONNX Runtime, a flow block: buffers that are bound once for each number of tokens, and a step that is one call.
#pragma once

#include "backends/block_runner.hpp"
#include "backends/onnxruntime/session.hpp"

namespace starflow {

class OnnxRuntimeBlockRunner : public BlockRunner {
 public:
  OnnxRuntimeBlockRunner(std::unique_ptr<Session> session, const Graph& graph, const Block& block,
                         const Manifest& manifest);

  void advance(int steps) override;
  double seconds_of_steps();  // of a step in the middle of the sequence, for the choice of threads

 private:
  void store(const std::string& name, const void* values, int count) override;
  const void* fetch(const std::string& name, int count) const override {
    return session_->read(memory(name, count), fetched_);
  }
  void run(int count) override { session_->run(binding(count)); }
  void seek(std::int64_t position) override { *position_ = position; }
  std::int64_t tell() const override { return *position_; }

  const TensorSpec& spec(const std::string& name) const;
  const Memory& memory(const std::string& name, int count) const;  // allocated when it is first needed
  const Binding& binding(int count);

  std::unique_ptr<Session> session_;
  mutable std::map<std::pair<std::string, int>, Memory> buffers_;
  mutable std::vector<std::byte> fetched_;
  std::map<int, Binding> bindings_;
  std::int64_t* position_;  // on the host, where the runner counts
};

}  // namespace starflow
