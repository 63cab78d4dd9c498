// Arrays in NumPy's format: float32, or int64 when read, in C order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// Both throw std::runtime_error, whose message is one line.
Array read_npy(const std::string& path);
void write_npy(const std::string& path, const Array& array);
