#include "backends/tensorrt/continuous_runner.hpp"

#include <algorithm>

namespace starflow {
namespace {

std::map<std::string, std::string> by_role(const std::vector<TensorSpec>& specs) {
  std::map<std::string, std::string> names;
  for (const TensorSpec& spec : specs) names[spec.role] = spec.name;
  return names;
}

}  // namespace

TensorrtContinuousRunner::TensorrtContinuousRunner(GraphEngine& engine, const Scratch& scratch, Queue queue)
    : queue_(queue),
      inputs_(by_role(engine.graph().inputs)),
      outputs_(by_role(engine.graph().outputs)),
      buffers_(queue, engine.graph(), 1),
      drain_{queue} {
  table_.resize(buffers_.bytes(inputs_.at("passes"), 1) / sizeof(Pass));
  pass_ = engine.capture(1, true, {buffers_.addresses()}, scratch, queue.stream, [this] { feed_back(); });
}

void TensorrtContinuousRunner::feed_back() {
  for (const auto& [role, name] : inputs_) {
    const auto next = outputs_.find(role);
    if (next != outputs_.end())
      queue_.gpu.copy(buffers_.address(name), buffers_.address(next->second), buffers_.bytes(name, 1), queue_.stream);
  }
}

void TensorrtContinuousRunner::condition(const std::string& role, const void* values) {
  const auto found = inputs_.find(role);
  if (found != inputs_.end()) buffers_.store(found->second, values, 1);
}

void TensorrtContinuousRunner::start(const float* x) {
  for (const char* role : {"x", "point", "total"}) condition(role, x);
}

void TensorrtContinuousRunner::load(const Pass* passes, std::size_t count) {
  const std::int64_t first = 0;
  std::copy_n(passes, count, table_.begin());
  condition("passes", table_.data());
  condition("pass", &first);
}

void TensorrtContinuousRunner::advance(int passes) {
  queue_.gpu.select();
  pass_.launch(queue_, passes);
}

const float* TensorrtContinuousRunner::fetch(const std::string& role) const {
  const auto state = inputs_.find(role);
  return static_cast<const float*>(buffers_.fetch(state == inputs_.end() ? outputs_.at(role) : state->second, 1));
}

}  // namespace starflow
