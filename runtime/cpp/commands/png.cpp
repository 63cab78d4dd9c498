#include "png.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb_image_write.h>
#pragma GCC diagnostic pop

starflow::Images grid(const starflow::Images& images, std::size_t columns) {
  constexpr std::size_t padding = 2;
  const auto square = static_cast<std::size_t>(std::ceil(std::sqrt(static_cast<double>(images.count))));
  columns = std::min(columns == 0 ? square : columns, images.count);
  const std::size_t rows = (images.count + columns - 1) / columns, line = images.width * images.channels;
  starflow::Images sheet{
      1, rows * (images.height + padding) - padding, columns * (images.width + padding) - padding, images.channels, {}};
  sheet.pixels.assign(sheet.height * sheet.width * sheet.channels, 0);
  for (std::size_t image = 0; image < images.count; ++image) {
    const std::size_t top = image / columns * (images.height + padding),
                      left = image % columns * (images.width + padding);
    for (std::size_t row = 0; row < images.height; ++row) {
      const std::uint8_t* from = images.pixels.data() + (image * images.height + row) * line;
      std::copy_n(from, line, sheet.pixels.data() + ((top + row) * sheet.width + left) * sheet.channels);
    }
  }
  return sheet;
}

void write_png(const std::string& path, const starflow::Images& image) {
  const std::string temporary = path + ".tmp";
  const auto width = static_cast<int>(image.width), height = static_cast<int>(image.height),
             channels = static_cast<int>(image.channels);
  if (stbi_write_png(temporary.c_str(), width, height, channels, image.pixels.data(), width * channels) == 0 ||
      std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    throw std::runtime_error(path + ": cannot be written");
  }
}
