#include "bundle/build_record.hpp"

#include <algorithm>

#include "bundle/manifest_schema.hpp"
#include "plain/error.hpp"
#include "plain/json.hpp"
#include "plain/sha256.hpp"

namespace starflow {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t most_record_bytes = std::size_t{8} << 20;
const char* const engines_folder = "engines";

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

std::string shape_of(const Manifest& manifest) {
  const std::vector<std::int64_t>& shape = manifest.model.data_shape;
  return std::to_string(shape[1]) + "x" + std::to_string(shape[2]);
}

// What tells a manifest from that of the default shape and of its largest batch: a folder, and options of a command.
struct Place {
  fs::path folder;
  std::string options;
};

Place place_of(const Bundle& bundle, const Manifest& manifest) {
  Place place{bundle.root() / engines_folder, ""};
  for (const std::vector<Manifest>& sizes : bundle.manifests()) {
    if (sizes[0].model.data_shape != manifest.model.data_shape) continue;
    if (&sizes != &bundle.manifests()[0]) {
      place.folder /= shape_of(manifest);
      place.options += " --shape " + shape_of(manifest);
    }
    if (sizes[0].batch != manifest.batch) {
      place.folder /= "batch" + std::to_string(manifest.batch);
      place.options += " --batch " + std::to_string(manifest.batch);
    }
  }
  return place;
}

BuildRecord read_fields(const Json& content) {
  BuildRecord record;
  record.flavour = content["flavour"];
  record.version = content["version"];
  record.variant = content["variant"];
  record.compute_capabilities = content["compute_capabilities"].get<std::vector<std::string>>();
  for (const Json& profile : content["profiles"])
    record.profiles.push_back({profile["minimum"], profile["optimum"], profile["maximum"]});
  const Json& options = content["options"];
  const auto given = [&](const char* name, std::optional<std::int64_t>& option) {
    if (options.contains(name) && !options[name].is_null()) option = options[name].get<std::int64_t>();
  };
  given("workspace_bytes", record.workspace_bytes);
  given("optimization_level", record.optimization_level);
  for (const Json& engine : content["engines"]) {
    const Json& file = engine["file"];
    record.engines.push_back(
        {engine["block"].get<std::int64_t>(), {file["path"], file["bytes"], file["sha256"]}, engine["key"]});
  }
  return record;
}

std::string command_of(const Bundle& bundle, const BuildRecord& record, const std::string& place) {
  std::string words = "starflow build " + bundle.root().string() + " --target " + record.flavour, tokens;
  if (record.flavour != "tensorrt") words += ":" + joined(record.compute_capabilities, ",");
  for (const Profile& profile : record.profiles)
    tokens += (tokens.empty() ? "" : ",") + std::to_string(profile.optimum);
  words += " --variant " + record.variant + " --profile-tokens " + tokens + place;
  if (record.workspace_bytes) words += " --workspace " + std::to_string(*record.workspace_bytes);
  if (record.optimization_level) words += " --optimization-level " + std::to_string(*record.optimization_level);
  return words;
}

BuildRecord read_build(const std::string& path) {
  const char* const again = "; delete its folder and run `starflow build` again";
  try {
    const Json content = parse_json(read_regular(path, most_record_bytes));
    check_schema(content, "BuildRecord");
    return read_fields(content);
  } catch (const std::runtime_error& error) {  // a Misfit, or why it cannot be read
    bundle_error(path + ": " + error.what() + again);
  }
}

// SHA-256 of everything an engine is built from, as JSON with sorted names.
std::string key_of(const BuildRecord& record, const Graph& graph, const Variant& variant) {
  const auto given = [](const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(); };
  Json profiles = Json::array();
  for (const Profile& each : record.profiles)
    profiles.push_back({{"minimum", each.minimum}, {"optimum", each.optimum}, {"maximum", each.maximum}});
  const Json inputs{
      {"flavour", record.flavour},
      {"version", record.version},
      {"compute_capabilities", record.compute_capabilities},
      {"profiles", profiles},
      {"options",
       {{"workspace_bytes", given(record.workspace_bytes)}, {"optimization_level", given(record.optimization_level)}}},
      {"graph", graph.file.sha256},
      {"weights", variant.weights.sha256}};
  return sha256(inputs.dump(-1, ' ', true));
}

}  // namespace

std::string BuildRecord::target() const { return flavour + "-" + joined(compute_capabilities, "_"); }

bool BuildRecord::runs_on(const std::string& compute_capability) const {
  return std::count(compute_capabilities.begin(), compute_capabilities.end(), compute_capability) > 0;
}

std::int64_t BuildRecord::max_tokens() const {
  std::int64_t most = 0;
  for (const Profile& profile : profiles) most = std::max(most, profile.maximum);
  return most;
}

int BuildRecord::profile_for(std::int64_t count) const {
  int chosen = -1;
  for (int index = 0; index < static_cast<int>(profiles.size()); ++index) {
    const Profile& profile = profiles[static_cast<std::size_t>(index)];
    if (count < profile.minimum || count > profile.maximum) continue;
    if (chosen < 0 || profile.maximum < profiles[static_cast<std::size_t>(chosen)].maximum) chosen = index;
  }
  if (chosen < 0)
    bundle_error("the engines of " + target() + " take runs of at most " + std::to_string(max_tokens()) +
                 " tokens, not " + std::to_string(count) + "; build again with --profile-tokens ...," +
                 std::to_string(count));
  return chosen;
}

std::vector<BuildRecord> read_builds(const Bundle& bundle, const Manifest& manifest) {
  const Place place = place_of(bundle, manifest);
  std::vector<fs::path> found;
  std::error_code failed;
  for (const auto& target : fs::directory_iterator(place.folder, failed)) {
    for (const auto& variant : fs::directory_iterator(target.path(), failed)) {
      if (fs::exists(variant.path() / "build.json", failed)) found.push_back(variant.path() / "build.json");
    }
  }
  std::sort(found.begin(), found.end());
  std::vector<BuildRecord> records;
  for (const fs::path& path : found) {
    records.push_back(read_build(path.string()));
    records.back().command = command_of(bundle, records.back(), place.options);
  }
  return records;
}

std::string check_engine_file(const Bundle& bundle, const Variant& variant, const BuildRecord& record,
                              const EngineFile& engine) {
  const fs::path path = bundle.root() / engine.file.path;
  const auto graph = std::find_if(variant.graphs.begin(), variant.graphs.end(),
                                  [&](const Graph& each) { return each.block == engine.block; });
  std::error_code failed;
  std::string fault;
  if (!lies_inside(path, bundle.root() / engines_folder)) {
    fault = "lies outside the bundle's engines";
  } else if (!fs::is_regular_file(path, failed)) {
    fault = "is missing";
  } else if (const auto size = fs::file_size(path, failed); size != static_cast<std::uintmax_t>(engine.file.bytes)) {
    fault = "has " + std::to_string(size) + " bytes, build.json says " + std::to_string(engine.file.bytes);
  } else if (graph == variant.graphs.end() || engine.key != key_of(record, *graph, variant)) {
    fault = "was not built from the present graph of flow block " + std::to_string(engine.block);
  } else {
    return path.string();
  }
  bundle_error(path.string() + ": " + fault + "; build again: " + record.command);
}

}  // namespace starflow
