// A bundle on disk whose files have the sizes that its manifest states.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <tuple>

#include "bundle/manifest.hpp"

namespace starflow {

class Bundle {
 public:
  // Reads and checks a bundle: sizes, and the headers of weights, but not digests.
  explicit Bundle(const std::string& folder);

  const Manifests& manifests() const { return manifests_; }
  // The manifest of a height and width, 0 for the default shape, at each of its batch sizes or at `batch` alone.
  std::vector<Manifest> at(std::int64_t height, std::int64_t width, std::int64_t batch) const;

  const std::filesystem::path& root() const { return root_; }
  std::string path(const File& file) const { return (root_ / file.path).string(); }
  // The content of a small file, compared with its digest.
  std::string content(const File& file) const;
  // Sees that files are what they were when the bundle was opened.
  void check_unchanged(std::initializer_list<const File*> files) const;
  // Compares every file with its digest.
  void verify() const;

 private:
  using Stamp =
      std::tuple<std::uint64_t, std::int64_t, std::int64_t, std::int64_t>;  // inode, bytes, time of the last change

  void check_file(const File& file);
  Stamp stamp(const File& file) const;

  std::filesystem::path root_;
  Manifests manifests_;
  std::map<std::string, Stamp> stamps_;
};

// Whether a file lies in a folder, whatever links lead to it. The Hugging Face Hub's cache keeps `snapshots/<commit>/`
// as links into `blobs/` beside `snapshots`; those are inside as well.
bool lies_inside(const std::filesystem::path& file, const std::filesystem::path& folder);

// The content of a regular file; throws std::runtime_error, whose message says why it cannot be read.
std::string read_regular(const std::string& path, std::size_t most_bytes);

// [T, D] float32 of a safetensors file that was read whole; empty if it has no such tensor.
std::vector<float> float32_tensor(const std::string& content, const std::string& name, std::int64_t rows,
                                  std::int64_t columns);

}  // namespace starflow
