#include "npy.hpp"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string_view>

namespace {

constexpr std::string_view magic = "\x93NUMPY";

// The text behind `key` in the header, a Python dictionary.
std::string field(const std::string& header, const std::string& key) {
  const std::size_t found = header.find("'" + key + "':");
  return found == std::string::npos ? "" : header.substr(found + key.size() + 3);
}

}  // namespace

Array read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string start(10, '\0');
  file.read(start.data(), 10);
  if (!file || start.compare(0, 6, magic) != 0 || start[6] != 1)
    throw std::runtime_error(path + ": cannot be read as a .npy file of version 1");
  std::string header(
      static_cast<std::size_t>(static_cast<unsigned char>(start[8]) | static_cast<unsigned char>(start[9]) << 8), '\0');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  if (field(header, "descr").find("'<f4'") > 1 || field(header, "fortran_order").find("False") > 1)
    throw std::runtime_error(path + ": expected float32 in C order");
  Array array;
  std::string sizes = field(header, "shape");
  sizes = sizes.substr(0, sizes.find(')'));
  std::size_t values = 1;
  for (const char* next = std::strpbrk(sizes.c_str(), "0123456789"); next != nullptr;) {
    char* end = nullptr;
    const std::int64_t size = std::strtoll(next, &end, 10);
    if (size < 0 || (size > 0 && values > (std::size_t{1} << 40) / static_cast<std::size_t>(size)))
      throw std::runtime_error(path + ": its shape is too large");
    array.shape.push_back(size);
    values *= static_cast<std::size_t>(size);
    next = std::strpbrk(end, "0123456789");
  }
  const std::streamoff here = file.tellg();
  file.seekg(0, std::ios::end);
  if (static_cast<std::size_t>(file.tellg() - here) != values * sizeof(float))
    throw std::runtime_error(path + ": has not as many values as its shape says");
  file.seekg(here);
  array.values.resize(values);
  file.read(reinterpret_cast<char*>(array.values.data()), static_cast<std::streamsize>(values * sizeof(float)));
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return array;
}

void write_npy(const std::string& path, const Array& array) {
  std::string shape;
  for (const std::int64_t size : array.shape) shape += std::to_string(size) + ",";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.append(63 - (header.size() + 10) % 64, ' ');  // data begin at a multiple of 64
  header += '\n';
  std::string start = std::string(magic) + std::string("\x01\x00", 2);
  start += static_cast<char>(header.size() & 255);
  start += static_cast<char>(header.size() >> 8);
  const std::string temporary = path + ".tmp";  // the file appears whole or not at all
  std::ofstream file(temporary, std::ios::binary);
  file << start << header;
  file.write(reinterpret_cast<const char*>(array.values.data()),
             static_cast<std::streamsize>(array.values.size() * sizeof(float)));
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    throw std::runtime_error(path + ": cannot be written");
  }
}
