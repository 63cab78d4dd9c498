#include "plans/decode_plan.hpp"

#include <algorithm>

namespace starflow {

int Segment::widest_run() const {
  switch (kind) {
    case Kind::steps:
      return 1;
    case Kind::chunk:
      return tokens;
    case Kind::window:
      return std::min(width, tokens);
    case Kind::student:
      return passes > 0 ? tokens : 0;
  }
  return 1;
}

std::vector<Segment> DecodePlan::segments(int block, int tokens) const {
  for (const BlockPlan& plan : blocks) {
    if (plan.block == block) return plan.segments;
  }
  Segment steps;
  steps.tokens = tokens;
  return {steps};
}

const Segment* DecodePlan::student(int block) const {
  for (const BlockPlan& plan : blocks) {
    if (plan.block == block && !plan.segments.empty() && plan.segments[0].kind == Segment::Kind::student)
      return &plan.segments[0];
  }
  return nullptr;
}

}  // namespace starflow
