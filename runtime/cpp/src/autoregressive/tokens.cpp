#include "autoregressive/tokens.hpp"

#include <algorithm>

namespace starflow {
namespace {

// Calls `visit` with the index of each value in an image [C, H, W] and in its tokens [T, D].
template <typename Visit>
void for_each_value(const Model& model, const Visit& visit) {
  const std::int64_t channels = model.data_shape[0], height = model.data_shape[1], width = model.data_shape[2],
                     patch = model.patch_size;
  std::int64_t index = 0;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t x = 0; x < width; ++x, ++index) {
        const std::int64_t token = y / patch * (width / patch) + x / patch, row = y % patch, column = x % patch;
        const std::int64_t component = model.channels_last ? (row * patch + column) * channels + channel
                                                           : (channel * patch + row) * patch + column;
        visit(static_cast<std::size_t>(index), static_cast<std::size_t>(token * model.token_dim + component));
      }
    }
  }
}

}  // namespace

std::vector<float> patchify(const std::vector<float>& x, const Model& model) {
  std::vector<float> tokens(x.size());
  const auto size = static_cast<std::size_t>(model.data_values());
  for (std::size_t start = 0; start < x.size(); start += size) {
    for_each_value(model, [&](std::size_t pixel, std::size_t value) { tokens[start + value] = x[start + pixel]; });
  }
  return tokens;
}

std::vector<float> unpatchify(const std::vector<float>& tokens, const Model& model) {
  std::vector<float> x(tokens.size());
  const auto size = static_cast<std::size_t>(model.data_values());
  for (std::size_t start = 0; start < tokens.size(); start += size) {
    for_each_value(model, [&](std::size_t pixel, std::size_t value) { x[start + pixel] = tokens[start + value]; });
  }
  return x;
}

void reverse_tokens(std::vector<float>& tokens, const Model& model) {
  const std::int64_t width = model.token_dim, count = model.tokens,
                     images = static_cast<std::int64_t>(tokens.size()) / (count * width);
  for (std::int64_t image = 0; image < images; ++image) {
    float* first = tokens.data() + image * count * width;
    for (std::int64_t token = 0; token < count / 2; ++token) {
      std::swap_ranges(first + token * width, first + (token + 1) * width, first + (count - 1 - token) * width);
    }
  }
}

}  // namespace starflow
