// The interface of a backend for continuous flows: a velocity graph, run for every pass of an integration.
#pragma once

#include <array>
#include <vector>

#include "bundle/manifest.hpp"

namespace starflow {

// A row of the table of passes: time, ahead, share, last.
using Pass = std::array<float, 4>;

class ContinuousRunner {
 public:
  virtual ~ContinuousRunner() = default;
  // Stores an input besides the state: label, condition or guidance. Nothing happens if the graph has no such input.
  virtual void condition(const std::string& role, const void* values) = 0;
  // Starts an integration from x [B, *data_shape].
  virtual void start(const float* x) = 0;
  // Stores the next passes, as many as the table has rows at most.
  virtual void load(const Pass* passes, std::size_t count) = 0;
  // Runs the next passes of the table.
  virtual void advance(int passes) = 0;
  // The state after the last finished step, or `velocity` of the last pass; valid until the next run.
  virtual const float* read() const = 0;
  virtual const float* velocity() const = 0;
  // Replaces the point at which the velocity is evaluated.
  virtual void move(const float* point) = 0;
};

}  // namespace starflow
