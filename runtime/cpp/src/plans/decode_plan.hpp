// Plans: how the tokens of a flow block are decoded, and how a continuous flow is integrated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace starflow {

// A part of a flow block's tokens: decoded one by one (`steps`), together (`chunk`), or in a window that slides over
// them; or all of them, made by the block's `student` and then iterated together in `passes` passes, which may be none.
struct Segment {
  enum class Kind { steps, chunk, window, student };
  enum class Guess { noise, previous, zeros };

  Kind kind = Kind::steps;
  int tokens = 1;
  // Of chunks and windows: the change below which a token is final; without one nothing is read on the way.
  std::optional<double> tolerance;
  Guess guess = Guess::noise;
  int passes = 1;  // of chunks and students
  // Of chunks.
  bool largest_change = false;  // norm `max`; else `mean-square`
  bool whole_batch = false;     // converged `batch`; else each `image` by itself
  bool exact_caches = false;    // caches `exact`; else `reference`
  // Of windows.
  int width = 1;
  std::vector<int> advances;

  int widest_run() const;  // of a step graph
};

struct BlockPlan {
  int block = 0;
  std::vector<Segment> segments;
};

struct DecodePlan {
  std::vector<BlockPlan> blocks;  // those that are not named are decoded token by token

  std::vector<Segment> segments(int block, int tokens) const;
  const Segment* student(int block) const;  // the segment of a flow block that its student does; null without one
};

struct IntegrationPlan {
  std::string solver = "heun";
  std::vector<double> times;  // from 0 to 1; empty for `dopri5`
  double tolerance = 0;       // of `dopri5`
};

// A plan that a bundle keeps for a backend and a variant.
struct StoredPlan {
  std::string backend, variant;
  DecodePlan decode;
  IntegrationPlan integration;
};

}  // namespace starflow
