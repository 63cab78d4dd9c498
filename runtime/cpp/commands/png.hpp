// Pictures as PNG.
#pragma once

#include <starflow/starflow.hpp>

// Images row by row on a black sheet, `columns` in a row, 0 for nearly a square.
starflow::Images grid(const starflow::Images& images, std::size_t columns);

// Writes the first image; throws std::runtime_error, whose message is one line. The file appears whole or not at all.
void write_png(const std::string& path, const starflow::Images& image);
