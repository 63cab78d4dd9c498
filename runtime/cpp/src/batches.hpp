// Any number of images in batches of the sizes a bundle was exported for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace starflow {

struct BatchOfImages {
  std::size_t size_index = 0;        // of the batch's size, in the list of sizes
  std::size_t first = 0, count = 0;  // which images are wanted
  std::vector<std::size_t> index;    // the images, as many as the batch has places: the last one pads it
};

// The next batch has the smallest size that holds all images that are left, or the largest size if none does.
// `sizes` begins with the largest.
inline std::vector<BatchOfImages> batches(std::size_t count, const std::vector<std::int64_t>& sizes) {
  std::vector<BatchOfImages> found;
  for (std::size_t start = 0; start < count;) {
    std::size_t chosen = 0;
    for (std::size_t each = 0; each < sizes.size(); ++each) {
      if (static_cast<std::size_t>(sizes[each]) >= count - start) chosen = each;
    }
    const auto size = static_cast<std::size_t>(sizes[chosen]);
    BatchOfImages batch{chosen, start, std::min(size, count - start), {}};
    for (std::size_t place = 0; place < size; ++place) batch.index.push_back(std::min(start + place, count - 1));
    found.push_back(batch);
    start += size;
  }
  return found;
}

}  // namespace starflow
