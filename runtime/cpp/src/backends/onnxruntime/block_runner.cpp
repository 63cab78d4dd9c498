#include "backends/onnxruntime/block_runner.hpp"

#include <algorithm>
#include <chrono>

namespace starflow {

OnnxRuntimeBlockRunner::OnnxRuntimeBlockRunner(std::unique_ptr<Session> session, const Graph& graph, const Block& block,
                                               const Manifest& manifest)
    : BlockRunner(graph, block, manifest, manifest.max_chunk),
      session_(std::move(session)),
      position_(static_cast<std::int64_t*>(memory("position", 1).data())) {
  check_steps();
}

const TensorSpec& OnnxRuntimeBlockRunner::spec(const std::string& name) const {
  const auto named = [&name](const TensorSpec& each) { return each.name == name; };
  const auto found = std::find_if(graph().inputs.begin(), graph().inputs.end(), named);
  return found != graph().inputs.end() ? *found : *std::find_if(graph().outputs.begin(), graph().outputs.end(), named);
}

const Memory& OnnxRuntimeBlockRunner::memory(const std::string& name, int count) const {
  const bool shared = name == "x" && count == 1;  // with `previous`: a step feeds the next one
  const TensorSpec& own = spec(shared ? "previous" : name);
  const int size = own.depends_on_run() ? count : 1;
  const auto found = buffers_.find({own.name, size});
  if (found != buffers_.end()) return found->second;
  Memory made = own.role == "position" ? Memory(own, size) : session_->allocate(own, size);
  return buffers_.emplace(std::pair(own.name, size), std::move(made)).first->second;
}

void OnnxRuntimeBlockRunner::store(const std::string& name, const void* values, int count) {
  session_->write(memory(name, count), values);
}

const Binding& OnnxRuntimeBlockRunner::binding(int count) {
  const auto bound = bindings_.find(count);
  if (bound != bindings_.end()) return bound->second;
  const auto input = [&](const TensorSpec& each) { return &memory(each.name, count); };
  const auto output = [&](const TensorSpec& each) -> const Memory* {
    if (each.role == "position") return nullptr;  // the runner counts
    for (const TensorSpec& updated : graph().inputs) {
      if (updated.updated_by == each.name) return &memory(updated.name, count);
    }
    return &memory(each.name, count);
  };
  return bindings_.emplace(count, session_->bind(count, input, output)).first->second;
}

void OnnxRuntimeBlockRunner::advance(int steps) {
  const Binding& step = binding(1);
  for (int done = 0; done < steps; ++done) {
    session_->run(step);
    ++*position_;
  }
}

double OnnxRuntimeBlockRunner::seconds_of_steps() {
  constexpr std::int64_t most_steps = 6;
  const std::int64_t middle = block().prefix + block().tokens() / 2,
                     steps = std::min(most_steps, block().capacity - middle - 1);
  seek(middle);
  advance(1);  // wakes the threads
  const auto start = std::chrono::steady_clock::now();
  advance(static_cast<int>(steps));
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  return passed.count();
}

}  // namespace starflow
