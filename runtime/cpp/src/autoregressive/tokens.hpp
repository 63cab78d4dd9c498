// Images as token sequences: patch vectors in raster order.
#pragma once

#include <vector>

#include "bundle/manifest.hpp"

namespace starflow {

// [N, C, H, W] -> [N, T, D], and back.
std::vector<float> patchify(const std::vector<float>& x, const Model& model);
std::vector<float> unpatchify(const std::vector<float>& tokens, const Model& model);

// Reverses the order of the tokens of each image, [N, T, D].
void reverse_tokens(std::vector<float>& tokens, const Model& model);

}  // namespace starflow
