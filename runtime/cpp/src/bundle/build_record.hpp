// `build.json`: the engines of one target and variant, what they were built from and what they run on. docs/tensorrt.md
// explains its fields.
#pragma once

#include <optional>

#include "bundle/bundle.hpp"

namespace starflow {

// An optimisation profile: the smallest and largest number of tokens in a run, and the one it is tuned for.
struct Profile {
  std::int64_t minimum = 1, optimum = 1, maximum = 1;
};

// The engine of a flow block, and the hash of what it was built from.
struct EngineFile {
  std::int64_t block = 0;
  File file;
  std::string key;
};

struct BuildRecord {
  std::string flavour, version, variant;
  std::vector<std::string> compute_capabilities;
  std::vector<Profile> profiles;
  std::optional<std::int64_t> workspace_bytes, optimization_level;
  std::vector<EngineFile> engines;
  std::string command;  // makes this build

  std::string target() const;  // such as `tensorrt-rtx-8.9_12.0`
  bool runs_on(const std::string& compute_capability) const;
  std::int64_t max_tokens() const;  // of one run
  // The number of the tightest profile for runs of `count` tokens; a bundle error if there is none.
  int profile_for(std::int64_t count) const;
};

// Every build for a manifest's shape and batch size, in the order of paths.
std::vector<BuildRecord> read_builds(const Bundle& bundle, const Manifest& manifest);

// The path of an engine that is whole and was built from the present graph of its flow block; a bundle error if it is
// not.
std::string check_engine_file(const Bundle& bundle, const Variant& variant, const BuildRecord& record,
                              const EngineFile& engine);

}  // namespace starflow
