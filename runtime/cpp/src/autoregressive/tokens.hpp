// Images as token sequences: patch vectors, and the patches and order of each flow block. Between two flow blocks the
// data are tokens of the model's patch size in raster order.
#pragma once

#include <vector>

#include "bundle/manifest.hpp"

namespace starflow {

// [N, C, H, W] -> [N, T, D], and back.
std::vector<float> patchify(const std::vector<float>& x, const Model& model);
std::vector<float> unpatchify(const std::vector<float>& tokens, const Model& model);

// Turns tokens of the model into the tokens of a flow block, in its patches and its order, and back. Only values move.
void to_block(std::vector<float>& tokens, const Model& model, const Block& block);
void from_block(std::vector<float>& tokens, const Model& model, const Block& block);

}  // namespace starflow
