// A file in memory, without a copy of it.
#pragma once

#include <cstddef>
#include <string>

namespace starflow {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // a bundle error if it cannot be read
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace starflow
