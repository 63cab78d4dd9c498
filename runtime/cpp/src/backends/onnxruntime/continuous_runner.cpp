#include "backends/onnxruntime/continuous_runner.hpp"

#include <algorithm>
#include <cstring>

namespace starflow {
namespace {

bool is_state(const std::string& role) { return role == "pass" || role == "x" || role == "point" || role == "total"; }

}  // namespace

OnnxRuntimeContinuousRunner::OnnxRuntimeContinuousRunner(std::unique_ptr<Session> session, const Graph& graph)
    : session_(std::move(session)) {
  for (const TensorSpec& spec : graph.inputs) {
    if (is_state(spec.role)) {
      for (auto& state : state_) state.emplace(spec.role, Memory(spec, 1));
    } else {
      fixed_.emplace(spec.role, Memory(spec, 1));
    }
  }
  for (const TensorSpec& spec : graph.outputs) {
    if (!is_state(spec.role)) fixed_.emplace(spec.role, Memory(spec, 1));
  }
  for (std::size_t turn = 0; turn < 2; ++turn) {
    const auto place = [this](std::size_t which) {
      return [this, which](const TensorSpec& spec) {
        return (is_state(spec.role) ? state_[which] : fixed_).at(spec.role).data();
      };
    };
    bindings_.push_back(session_->bind(1, place(turn), place(1 - turn)));
  }
}

void OnnxRuntimeContinuousRunner::condition(const std::string& role, const void* values) {
  const auto found = fixed_.find(role);
  if (found != fixed_.end()) std::memcpy(found->second.data(), values, found->second.bytes());
}

void OnnxRuntimeContinuousRunner::start(const float* x) {
  for (const char* name : {"x", "point", "total"})
    std::memcpy(state_[turn_].at(name).data(), x, state_[turn_].at(name).bytes());
}

void OnnxRuntimeContinuousRunner::load(const Pass* passes, std::size_t count) {
  std::copy_n(passes, count, static_cast<Pass*>(fixed_.at("passes").data()));
  *static_cast<std::int64_t*>(state_[turn_].at("pass").data()) = 0;
}

void OnnxRuntimeContinuousRunner::advance(int passes) {
  for (int done = 0; done < passes; ++done) {
    session_->run(bindings_[turn_].get());
    turn_ = 1 - turn_;
  }
}

void OnnxRuntimeContinuousRunner::move(const float* point) {
  std::memcpy(state_[turn_].at("point").data(), point, state_[turn_].at("point").bytes());
}

}  // namespace starflow
