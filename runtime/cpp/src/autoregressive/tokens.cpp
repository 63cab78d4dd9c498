#include "autoregressive/tokens.hpp"

#include <algorithm>

namespace starflow {
namespace {

// Calls `visit` with the index of each value in an image [C, H, W] and in its tokens [T, D] of these patches.
template <typename Visit>
void for_each_value(const Model& model, const Patch& patch, const Visit& visit) {
  const std::int64_t channels = model.data_shape[0], height = model.data_shape[1], width = model.data_shape[2],
                     values = model.values_of(patch);
  std::int64_t index = 0;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t x = 0; x < width; ++x, ++index) {
        const std::int64_t token = y / patch.height * (width / patch.width) + x / patch.width, row = y % patch.height,
                           column = x % patch.width;
        const std::int64_t component = model.channels_last ? (row * patch.width + column) * channels + channel
                                                           : (channel * patch.height + row) * patch.width + column;
        visit(static_cast<std::size_t>(index), static_cast<std::size_t>(token * values + component));
      }
    }
  }
}

std::vector<float> cut(const std::vector<float>& x, const Model& model, const Patch& patch) {
  std::vector<float> tokens(x.size());
  const auto size = static_cast<std::size_t>(model.data_values());
  for (std::size_t start = 0; start < x.size(); start += size) {
    for_each_value(model, patch,
                   [&](std::size_t pixel, std::size_t value) { tokens[start + value] = x[start + pixel]; });
  }
  return tokens;
}

std::vector<float> join(const std::vector<float>& tokens, const Model& model, const Patch& patch) {
  std::vector<float> x(tokens.size());
  const auto size = static_cast<std::size_t>(model.data_values());
  for (std::size_t start = 0; start < tokens.size(); start += size) {
    for_each_value(model, patch,
                   [&](std::size_t pixel, std::size_t value) { x[start + pixel] = tokens[start + value]; });
  }
  return x;
}

void reverse(std::vector<float>& tokens, const Model& model, const Patch& patch) {
  const std::int64_t width = model.values_of(patch), count = model.tokens_of(patch),
                     images = static_cast<std::int64_t>(tokens.size()) / (count * width);
  for (std::int64_t image = 0; image < images; ++image) {
    float* first = tokens.data() + image * count * width;
    for (std::int64_t token = 0; token < count / 2; ++token) {
      std::swap_ranges(first + token * width, first + (token + 1) * width, first + (count - 1 - token) * width);
    }
  }
}

}  // namespace

std::vector<float> patchify(const std::vector<float>& x, const Model& model) { return cut(x, model, model.patch()); }

std::vector<float> unpatchify(const std::vector<float>& tokens, const Model& model) {
  return join(tokens, model, model.patch());
}

void to_block(std::vector<float>& tokens, const Model& model, const Block& block) {
  if (!(block.patch == model.patch())) tokens = cut(unpatchify(tokens, model), model, block.patch);
  if (block.reversed) reverse(tokens, model, block.patch);
}

void from_block(std::vector<float>& tokens, const Model& model, const Block& block) {
  if (block.reversed) reverse(tokens, model, block.patch);
  if (!(block.patch == model.patch())) tokens = patchify(join(tokens, model, block.patch), model);
}

}  // namespace starflow
