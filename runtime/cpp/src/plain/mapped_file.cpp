#include "plain/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "plain/error.hpp"

namespace starflow {

MappedFile::MappedFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat found{};
  if (file >= 0 && ::fstat(file, &found) == 0 && found.st_size > 0) {
    bytes_ = static_cast<std::size_t>(found.st_size);
    data_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
  }
  const int error = errno;
  if (file >= 0) ::close(file);
  if (data_ == nullptr || data_ == MAP_FAILED) bundle_error(path + ": cannot be read (" + std::strerror(error) + ")");
}

MappedFile::~MappedFile() { ::munmap(data_, bytes_); }

}  // namespace starflow
