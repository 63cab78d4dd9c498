// Conditions of a caller as the arrays that graphs take.
#pragma once

#include <vector>

#include "bundle/manifest.hpp"
#include "starflow/starflow.hpp"

namespace starflow {

// Conditions of one batch.
struct BatchConditions {
  std::vector<float> tokens, null_tokens;         // [B, m, width]
  std::vector<std::int64_t> labels, null_labels;  // [B]

  // [conditional, null] rows if `guided`, else the conditional ones.
  std::vector<float> token_rows(bool guided) const;
  std::vector<std::int64_t> label_rows(bool guided) const;
};

// Conditions of N images, checked.
class Conditions {
 public:
  // Usage errors say what does not fit the model. Keeps a reference to the request.
  Conditions(const Conditioning& spec, std::size_t count, const Request& request, bool guided);

  // Those of the images in `index`.
  BatchConditions of(const std::vector<std::size_t>& index) const;

 private:
  const Conditioning& spec_;
  const Request& request_;
};

}  // namespace starflow
