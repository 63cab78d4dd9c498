// The interface between the sampler and a family of flows: one batch of an exported size at a time.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backends/backend.hpp"
#include "conditions.hpp"
#include "starflow/starflow.hpp"

namespace starflow {

// One batch of a call.
struct Batch {
  std::vector<float> noise;  // [B, *noise_shape]
  BatchConditions conditions;
  std::vector<Guidance> guidance;    // of each image
  std::size_t first = 0, count = 0;  // which images of the call are wanted; the others pad the batch
};

using OnWork = std::function<void(std::size_t done)>;  // with the units just done; it throws to cancel

class FamilyLoop {
 public:
  virtual ~FamilyLoop() = default;
  virtual std::size_t work() const = 0;  // units of progress in one batch
  virtual void load() = 0;
  virtual void check(const Request& request) const = 0;
  virtual std::vector<float> run(const Batch& batch, const Request& request,
                                 const OnWork& on_work) = 0;  // [B, *data_shape]
};

// The loop of a bundle's family. `plan` is as in `Options`. All that is given must outlive the loop.
std::unique_ptr<FamilyLoop> open_autoregressive(const Bundle& bundle, const Manifest& manifest, const Variant& variant,
                                                Backend& backend, const std::string& plan);
std::unique_ptr<FamilyLoop> open_continuous(const Manifest& manifest, const Variant& variant, Backend& backend,
                                            const std::string& plan);

}  // namespace starflow
