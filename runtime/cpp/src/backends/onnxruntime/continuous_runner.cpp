#include "backends/onnxruntime/continuous_runner.hpp"

#include <algorithm>

namespace starflow {
namespace {

bool is_state(const std::string& role) { return role == "pass" || role == "x" || role == "point" || role == "total"; }

}  // namespace

OnnxRuntimeContinuousRunner::OnnxRuntimeContinuousRunner(std::unique_ptr<Session> session, const Graph& graph)
    : session_(std::move(session)) {
  for (const TensorSpec& spec : graph.inputs) {
    if (is_state(spec.role)) {
      for (auto& state : state_) state.emplace(spec.role, session_->allocate(spec, 1));
    } else {
      fixed_.emplace(spec.role, session_->allocate(spec, 1));
    }
  }
  for (const TensorSpec& spec : graph.outputs) {
    if (!is_state(spec.role)) fixed_.emplace(spec.role, session_->allocate(spec, 1));
  }
  table_.resize(fixed_.at("passes").bytes() / sizeof(Pass));
  for (std::size_t turn = 0; turn < 2; ++turn) {
    const auto place = [this](std::size_t which) {
      return [this, which](const TensorSpec& spec) {
        return &(is_state(spec.role) ? state_[which] : fixed_).at(spec.role);
      };
    };
    bindings_.push_back(session_->bind(1, place(turn), place(1 - turn)));
  }
}

void OnnxRuntimeContinuousRunner::condition(const std::string& role, const void* values) {
  const auto found = fixed_.find(role);
  if (found != fixed_.end()) session_->write(found->second, values);
}

void OnnxRuntimeContinuousRunner::start(const float* x) {
  for (const char* name : {"x", "point", "total"}) session_->write(state_[turn_].at(name), x);
}

void OnnxRuntimeContinuousRunner::load(const Pass* passes, std::size_t count) {
  const std::int64_t first = 0;
  std::copy_n(passes, count, table_.begin());
  session_->write(fixed_.at("passes"), table_.data());
  session_->write(state_[turn_].at("pass"), &first);
}

void OnnxRuntimeContinuousRunner::advance(int passes) {
  for (int done = 0; done < passes; ++done) {
    session_->run(bindings_[turn_]);
    turn_ = 1 - turn_;
  }
}

void OnnxRuntimeContinuousRunner::move(const float* point) { session_->write(state_[turn_].at("point"), point); }

}  // namespace starflow
