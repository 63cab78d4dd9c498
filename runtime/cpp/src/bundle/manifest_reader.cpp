// From the text of a manifest to `Manifest`. The schema has seen to types, ranges, and unknown or missing fields.
#include <algorithm>
#include <functional>
#include <map>

#include "bundle/manifest.hpp"
#include "bundle/manifest_checks.hpp"
#include "bundle/manifest_schema.hpp"
#include "plain/error.hpp"
#include "plain/json.hpp"

namespace starflow {
namespace {

constexpr std::int64_t newest_schema = 3;
constexpr std::int64_t most_values = std::int64_t{1} << 40;  // of one tensor

// A count, such as one of tokens or rows.
int count(const Json& value) {
  constexpr std::int64_t most = 1 << 24;
  if (value.get<std::int64_t>() > most) throw Misfit(shown(value) + " is too large, expected 2^24 or less");
  return value.get<int>();
}

// A field that may be left out, or be null.
const Json* given(const Json& fields, const char* name) {
  const auto found = fields.find(name);
  return found == fields.end() || found->is_null() ? nullptr : &*found;
}

template <class Read>
auto each(const Json& list, Read read) {
  std::vector<decltype(read(list))> made;
  for (const Json& value : list) made.push_back(read(value));
  return made;
}

File read_file(const Json& file) { return {file["path"], file["bytes"], file["sha256"]}; }

std::vector<std::int64_t> read_shape(const Json& shape) {
  std::int64_t values = 1;
  return each(shape, [&values](const Json& size) {
    if (size == "S") return tokens_of_run;
    if (values > most_values / size.get<std::int64_t>()) throw Misfit("a shape is too large");
    values *= size.get<std::int64_t>();
    return size.get<std::int64_t>();
  });
}

TensorSpec read_tensor(const Json& tensor) {
  static const std::map<std::string, Type> types{{"float32", Type::float32},
                                                 {"float16", Type::float16},
                                                 {"bfloat16", Type::bfloat16},
                                                 {"int64", Type::int64},
                                                 {"int8", Type::int8}};
  const Json* updated_by = given(tensor, "updated_by");
  return {tensor["name"], types.at(tensor["dtype"]), read_shape(tensor["shape"]), tensor["role"],
          updated_by ? updated_by->get<std::string>() : ""};
}

Graph read_graph(const Json& graph) {
  return {count(graph["block"]), read_file(graph["file"]), each(graph["inputs"], read_tensor),
          each(graph["outputs"], read_tensor), graph["weight_bytes"]};
}

Network read_network(const Json& network) {
  return {read_file(network["file"]), read_file(network["weights"]), each(network["inputs"], read_tensor),
          each(network["outputs"], read_tensor)};
}

Variant read_variant(const Json& variant) {
  Variant made{variant["name"], variant["lowering"], variant["precision"], read_file(variant["weights"]),
               each(variant["graphs"], read_graph), {}};
  if (const Json* students = given(variant, "students"))
    made.students = each(*students, [](const Json& student) {
      return QuantizedStudent{count(student["block"]), read_network(student["network"])};
    });
  return made;
}

Conditioning read_conditioning(const Json& fields) {
  Conditioning made{fields["kind"], fields.value("num_classes", std::int64_t{0}), 0, 0, {}};
  if (const Json* tokens = given(fields, "tokens")) made.tokens = count(*tokens);
  if (const Json* width = given(fields, "width")) made.width = count(*width);
  if (const Json* names = given(fields, "class_names")) {
    made.class_names = names->get<std::vector<std::string>>();
    if (names->empty() && made.num_classes > 0) throw Misfit("class_names: found none");
  }
  return made;
}

Model read_model(const Json& fields) {
  Model model;
  model.family = fields["family"];
  model.data_shape = read_shape(fields["data_shape"]);
  if (model.family == "continuous-flow") return model;
  model.noise_std = fields["noise_std"];
  model.noise_as_tokens = fields["noise_layout"] == "tokens";
  model.patch_size = count(fields["patch_size"]);
  model.channels_last = fields["patch_order"] == "row-column-channel";
  model.tokens = count(fields["tokens"]);
  model.token_dim = fields["token_dim"];
  return model;
}

Segment read_segment(const Json& fields) {
  static const std::map<std::string, Segment::Kind> kinds{
      {"steps", Segment::Kind::steps},
      {"chunk", Segment::Kind::chunk},
      {"window", Segment::Kind::window},
      {"student", Segment::Kind::student}};
  static const std::map<std::string, Segment::Guess> guesses{
      {"noise", Segment::Guess::noise}, {"previous", Segment::Guess::previous}, {"zeros", Segment::Guess::zeros}};
  if (!fields.contains("kind")) throw Misfit("a segment has no kind");
  Segment segment;
  segment.kind = kinds.at(fields["kind"]);
  segment.tokens = count(fields["tokens"]);
  if (const Json* tolerance = given(fields, "tolerance")) segment.tolerance = tolerance->get<double>();
  segment.guess = guesses.at(fields.value("guess", "noise"));
  segment.passes = fields.value("passes", segment.kind == Segment::Kind::student ? 0 : 1);
  segment.largest_change = fields.value("norm", "mean-square") == "max";
  segment.whole_batch = fields.value("converged", "image") == "batch";
  segment.exact_caches = fields.value("caches", "reference") == "exact";
  if (segment.kind != Segment::Kind::window) return segment;
  segment.width = count(fields["width"]);
  std::int64_t sum = 0;
  if (const Json* advances = given(fields, "advances")) {
    segment.advances = each(*advances, count);
    for (const int advance : segment.advances) {
      if (advance < 1 || advance > segment.width)
        throw Misfit("advances must be between 1 and the width, " + std::to_string(segment.width));
      sum += advance;
    }
    if (sum != segment.tokens)
      throw Misfit("advances add up to " + std::to_string(sum) + ", the window has " + std::to_string(segment.tokens) +
                   " tokens");
  }
  if (segment.advances.empty() == !segment.tolerance) throw Misfit("a window needs either advances or a tolerance");
  return segment;
}

DecodePlan read_decode(const Json& plan) {
  return {each(plan["blocks"], [](const Json& block) {
    return BlockPlan{count(block["block"]), each(block["segments"], read_segment)};
  })};
}

IntegrationPlan read_integration(const Json& fields) {
  IntegrationPlan plan{fields["solver"], {}, fields.value("tolerance", 0.0)};
  if (plan.solver == "dopri5") return plan;
  plan.times = fields["times"].get<std::vector<double>>();
  if (plan.times.size() < 2 || plan.times.front() != 0 || plan.times.back() != 1)
    throw Misfit("times: must run from 0 (noise) to 1 (data)");
  if (std::adjacent_find(plan.times.begin(), plan.times.end(), std::greater_equal<>()) != plan.times.end())
    throw Misfit("times: must increase");
  return plan;
}

StoredPlan read_stored_plan(const Json& fields, bool continuous) {
  return {fields["backend"], fields["variant"], continuous ? DecodePlan{} : read_decode(fields),
          continuous ? read_integration(fields["plan"]) : IntegrationPlan{}};
}

Autoencoder read_autoencoder(const Json& fields) {
  Autoencoder autoencoder;
  if (const Json* encoder = given(fields, "encoder")) autoencoder.encoder = read_network(*encoder);
  autoencoder.decoders = each(fields["decoders"], [](const Json& decoder) {
    return Decoder{read_network(decoder["network"]), decoder["noise_std"]};
  });
  autoencoder.pixel_shape = read_shape(fields["pixel_shape"]);
  return autoencoder;
}

Denoiser read_denoiser(const Json& denoiser) {
  return {denoiser["kind"], denoiser["precision"], read_network(denoiser["network"])};
}

Student read_student(const Json& student) {
  const Json& guidance = student["guidance"];
  return {count(student["block"]), student["teacher"], guidance[0], guidance[1], read_network(student["network"])};
}

void read_autoregressive_fields(const Json& fields, Manifest& manifest) {
  if (const Json* guidance = given(fields, "guidance")) {
    manifest.guidance_rule = (*guidance)["rule"];
    manifest.guided_blocks = each((*guidance)["blocks"], count);
  }
  manifest.guided = !manifest.guidance_rule.empty();
  manifest.attention_temperature = fields["attention_temperature"];
  manifest.max_chunk = count(fields["max_chunk"]);
  if (const Json* prior = given(fields, "prior")) manifest.prior = read_file(*prior);
  manifest.blocks = each(fields["blocks"], [&](const Json& block) {
    const Json* patch = given(block, "patch");
    return Block{count(block["index"]),
                 block["identity"],
                 block["reversed"],
                 count(block["rows"]),
                 count(block["prefix"]),
                 block["first_token"],
                 count(block["capacity"]),
                 patch ? Patch{count((*patch)[0]), count((*patch)[1])} : manifest.model.patch()};
  });
  if (const Json* students = given(fields, "students")) manifest.students = each(*students, read_student);
}

// A manifest of one shape and one batch size, whose fields fit the schema.
Manifest read_one(const Json& fields) {
  Manifest manifest;
  manifest.model = read_model(fields["model"]);
  const bool continuous = manifest.is_continuous();
  manifest.mode = fields["image"]["mode"];
  manifest.scale = fields["image"]["scale"];
  manifest.shift = fields["image"]["shift"];
  manifest.conditioning = read_conditioning(fields["conditioning"]);
  manifest.batch = count(fields["batch"]);
  manifest.variants = each(fields["variants"], read_variant);
  manifest.checkpoint_sha256 = fields["provenance"]["checkpoint_sha256"];
  if (const Json* text = given(fields, "text"))
    manifest.text = {read_file((*text)["tokenizer"]), read_network((*text)["encoder"]), count((*text)["tokens"]),
                     (*text)["template"]};
  if (const Json* autoencoder = given(fields, "autoencoder")) manifest.autoencoder = read_autoencoder(*autoencoder);
  if (const Json* denoisers = given(fields, "denoisers")) manifest.denoisers = each(*denoisers, read_denoiser);
  if (const Json* plans = given(fields, "plans"))
    manifest.plans = each(*plans, [&](const Json& plan) { return read_stored_plan(plan, continuous); });
  if (continuous) {
    manifest.guided = fields["guided"];
    manifest.max_passes = count(fields["max_passes"]);
  } else {
    read_autoregressive_fields(fields, manifest);
  }
  check_manifest(manifest);
  return manifest;
}

// `manifest` with the fields that an entry of `shapes` or `batches` replaces, and `defaults` for those that it leaves
// out.
Json replaced(Json manifest, const Json& entry, const Json& defaults) {
  manifest.update(defaults);
  manifest.update(entry);
  return manifest;
}

// Takes away fields that are null or empty lists, which mean the same where they are left out.
void drop_defaults(Json& value) {
  if (!value.is_structured()) return;
  for (auto field = value.begin(); field != value.end();) {
    drop_defaults(*field);
    const bool is_default = value.is_object() && (field->is_null() || (field->is_array() && field->empty()));
    field = is_default ? value.erase(field) : std::next(field);
  }
}

// What has to be the same for every batch size.
Json of_all_batches(const Json& manifest) {
  Json kept{{"variants", manifest["variants"]},
            {"autoencoder", manifest.value("autoencoder", Json())},
            {"denoisers", manifest.value("denoisers", Json::array())},
            {"students", manifest.value("students", Json::array())},
            {"blocks", manifest.value("blocks", Json::array())}};
  for (Json& variant : kept["variants"]) {
    variant.erase("graphs");
    variant.erase("students");  // which run where they pay
  }
  for (Json& block : kept["blocks"]) block.erase("rows");
  const auto reduce = [](Json& network) {
    if (network.is_object()) network = network["weights"];
  };
  if (kept["autoencoder"].is_object()) {
    reduce(kept["autoencoder"]["encoder"]);
    for (Json& decoder : kept["autoencoder"]["decoders"]) reduce(decoder["network"]);
  }
  for (Json& denoiser : kept["denoisers"]) reduce(denoiser["network"]);
  for (Json& student : kept["students"]) reduce(student["network"]);
  drop_defaults(kept);
  return kept;
}

// Whether a variant is timed or scales activations by row, which older schemas cannot say.
bool has_newer_quantization(const Json& variant) {
  const Json* quantization = given(variant, "quantization");
  if (!quantization) return false;
  if (given(*quantization, "timing")) return true;
  const Json& matrices = (*quantization)["matrices"];
  return std::any_of(matrices.begin(), matrices.end(), [](const Json& kind) {
    return kind.get<std::string>().rfind("int8-row", 0) == 0;
  });
}

// What students are, whatever the shape and the batch size.
Json distilled(const Json& manifest) {
  Json students = manifest.value("students", Json::array());
  for (Json& student : students) student.erase("network");
  drop_defaults(students);
  return students;
}

// The manifest of one shape at each of its batch sizes.
std::vector<Manifest> read_batches(const Json& content) {
  std::vector<Manifest> sizes{read_one(content)};
  const Json batches = content.value("batches", Json::array());
  const Json blocks = content.value("blocks", Json::array());
  const bool patched = std::any_of(blocks.begin(), blocks.end(), [](const Json& block) {
    return given(block, "patch") != nullptr;
  });
  const Json& variants = content["variants"];
  const bool newer = std::any_of(variants.begin(), variants.end(), [](const Json& variant) {
    return variant["lowering"] == "cuda" || has_newer_quantization(variant);
  });
  const bool taught = !content.value("students", Json::array()).empty();
  if (content["schema_version"] != (patched || taught || newer ? 3 : batches.empty() ? 1 : 2))
    throw Misfit(
        "schema_version: a bundle of one batch size has 1, one of several has 2, and one with a cuda variant, with"
        " times or products by row, with patches of a flow block's own, or with students has 3");
  const Json own = of_all_batches(content);
  for (std::size_t index = 0; index < batches.size(); ++index) {
    const std::string path = "batches." + std::to_string(index);
    const Json defaults{{"autoencoder", nullptr},
                        {"denoisers", Json::array()},
                        {"students", Json::array()},
                        {"plans", Json::array()}};
    const Json one = replaced(content, batches[index], defaults);
    try {
      sizes.push_back(read_one(one));
    } catch (const Misfit& misfit) {
      throw Misfit(path + ": " + misfit.what());
    }
    if (sizes.back().batch >= sizes[index].batch) throw Misfit(path + ": its size must be smaller than the one before");
    if (of_all_batches(one) != own)
      throw Misfit(path + ": its variants, networks or blocks differ from those of the largest batch size");
  }
  return sizes;
}

Manifests read_shapes(const Json& content) {
  Manifests manifests{read_batches(content)};
  const Json shapes = content.value("shapes", Json::array());
  for (std::size_t index = 0; index < shapes.size(); ++index) {
    const std::string path = "shapes." + std::to_string(index);
    const Json defaults{{"plans", Json::array()},
                        {"text", nullptr},
                        {"autoencoder", nullptr},
                        {"denoisers", Json::array()},
                        {"students", Json::array()},
                        {"batches", Json::array()}};
    const Json one = replaced(content, shapes[index], defaults);
    try {
      manifests.push_back(read_batches(one));
    } catch (const Misfit& misfit) {
      throw Misfit(path + ": " + misfit.what());
    }
    const std::vector<Manifest>& own = manifests[0];
    std::vector<Manifest>& made = manifests.back();
    const auto same_batch = [](const Manifest& a, const Manifest& b) { return a.batch == b.batch; };
    if (!std::equal(own.begin(), own.end(), made.begin(), made.end(), same_batch))
      throw Misfit(path + ": its batch sizes differ from those of the default shape");
    if (distilled(one) != distilled(content))
      throw Misfit(path + ": its students differ from those of the default shape");
    for (std::size_t before = 0; before <= index; ++before) {
      const auto& sizes = manifests[before][0].model.data_shape;
      if (std::equal(sizes.begin() + 1, sizes.end(), made[0].model.data_shape.begin() + 1))
        throw Misfit("shapes: a shape occurs twice");
    }
  }
  return manifests;
}

}  // namespace

Manifests read_manifests(const std::string& text, const std::string& name) {
  const std::string again = "; copy or export the bundle again";
  try {
    const Json content = parse_json(text);
    const bool versioned =
        content.is_object() && content.contains("schema_version") && content["schema_version"].is_number_integer();
    if (!versioned) bundle_error(name + ": has no schema_version, which is a whole number" + again);
    if (content["schema_version"] > newest_schema) {
      bundle_error(name + ": has schema " + content["schema_version"].dump() + ", this starflow reads " +
                   std::to_string(newest_schema) + "; install a newer starflow");
    }
    const bool continuous = content.value("/model/family"_json_pointer, "") == "continuous-flow";
    check_schema(content, continuous ? "ContinuousManifest" : "AutoregressiveManifest");
    return read_shapes(content);
  } catch (const Misfit& misfit) {
    bundle_error(name + ": " + misfit.what() + again);
  } catch (const Json::exception& error) {
    bundle_error(name + ": " + error.what() + again);
  }
}

DecodePlan read_decode_plan(const std::string& text, const std::string& name, const Manifest& manifest) {
  try {
    const Json content = parse_json(text);
    check_schema(content, "DecodePlan");
    DecodePlan plan = read_decode(content);
    check_plan(plan, manifest);
    return plan;
  } catch (const Misfit& misfit) {
    usage_error("plan " + name + ": " + misfit.what());
  }
}

IntegrationPlan read_integration_plan(const std::string& text, const std::string& name) {
  try {
    const Json content = parse_json(text);
    check_schema(content, content.value("solver", "") == "dopri5" ? "AdaptiveSteps" : "FixedSteps");
    return read_integration(content);
  } catch (const Misfit& misfit) {
    usage_error("plan " + name + ": " + misfit.what());
  }
}

}  // namespace starflow
