// From the text of a manifest to `Manifest`, field by field in the order of docs/bundle.md.
#include <algorithm>
#include <map>

#include "bundle/manifest.hpp"
#include "bundle/manifest_checks.hpp"
#include "plain/error.hpp"
#include "plain/json_fields.hpp"

namespace starflow {
namespace {

constexpr std::int64_t newest_schema = 2;
constexpr std::int64_t most_values = std::int64_t{1} << 40;  // of one tensor
constexpr std::int64_t most_passes = 100'000;
constexpr std::int64_t most_tokens = 1 << 24;
constexpr std::int64_t most_batch = 1 << 20;

bool is_word(char each) {
  return (each >= 'a' && each <= 'z') || (each >= 'A' && each <= 'Z') || (each >= '0' && each <= '9') || each == '_';
}

File read_file(Fields fields) {
  File file{fields.text("path"), fields.whole("bytes", 0), fields.text("sha256")};
  const auto in_path = [](char each) { return is_word(each) || each == '.' || each == '/' || each == '-'; };
  if (file.path.empty() || !is_word(file.path[0]) || !std::all_of(file.path.begin(), file.path.end(), in_path)) {
    fields.misfit("path", file.path, "letters, digits and any of _ . / -");
  }
  if (file.sha256.size() != 64 || file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos)
    fields.misfit("sha256", file.sha256, "64 hexadecimal digits");
  fields.done();
  return file;
}

TensorSpec read_tensor(const Json& value, const std::string& path) {
  static const std::map<std::string, Type> types{{"float32", Type::float32},
                                                 {"float16", Type::float16},
                                                 {"bfloat16", Type::bfloat16},
                                                 {"int64", Type::int64},
                                                 {"int8", Type::int8}};
  Fields fields(value, path);
  TensorSpec spec;
  spec.name = fields.text("name");
  spec.type = types.at(fields.one_of("dtype", {"float32", "float16", "bfloat16", "int64", "int8"}));
  std::int64_t values = 1;
  fields.list("shape", [&](const Json& size, const std::string& where) {
    const bool whole = size.is_number_unsigned() && size.get<std::uint64_t>() > 0 &&
                       size.get<std::uint64_t>() <= std::uint64_t{most_values};
    if (!whole && size != "S")
      throw Misfit(where + ": found " + shown(size) + ", expected a whole number above 0, or \"S\"");
    spec.shape.push_back(whole ? size.get<std::int64_t>() : tokens_of_run);
    if (whole && values > most_values / size.get<std::int64_t>()) throw Misfit(where + ": the tensor is too large");
    values *= whole ? size.get<std::int64_t>() : 1;
  });
  spec.role = fields.one_of("role", {"position",
                                     "previous",
                                     "noise",
                                     "samples",
                                     "condition",
                                     "label",
                                     "guidance",
                                     "guidance_scale",
                                     "guidance_shift",
                                     "guidance_anneal",
                                     "inverse_temperature",
                                     "cache",
                                     "token",
                                     "pass",
                                     "passes",
                                     "x",
                                     "point",
                                     "total",
                                     "velocity",
                                     "ids",
                                     "mask",
                                     "features",
                                     "pixels",
                                     "latent",
                                     "score",
                                     "prediction"});
  if (fields.has("updated_by")) spec.updated_by = fields.text("updated_by");
  fields.done();
  return spec;
}

std::vector<TensorSpec> read_tensors(Fields& fields, const char* name) {
  std::vector<TensorSpec> specs;
  fields.list(name, [&](const Json& value, const std::string& path) { specs.push_back(read_tensor(value, path)); });
  return specs;
}

Graph read_graph(const Json& value, const std::string& path) {
  Fields fields(value, path);
  Graph graph{static_cast<int>(fields.whole("block", 0, most_tokens)), read_file(fields.object("file")),
              read_tensors(fields, "inputs"), read_tensors(fields, "outputs"), fields.whole("weight_bytes", 0)};
  fields.done();
  return graph;
}

Network read_network(Fields fields) {
  Network network{read_file(fields.object("file")), read_file(fields.object("weights")), read_tensors(fields, "inputs"),
                  read_tensors(fields, "outputs")};
  fields.whole("weight_bytes", 0);
  fields.done();
  return network;
}

void check_quantization(Fields fields) {
  fields.text("source");
  for (const char* name : {"budget", "error", "plain_error"}) {
    if (!fields.any(name).is_null()) fields.number(name);
  }
  fields.whole("images", -most_values);
  fields.number("guidance");
  Fields matrices = fields.object("matrices");
  for (const auto& [name, type] : fields.any("matrices").items())
    matrices.one_of(name.c_str(), {"int4", "int8", "int8-wide", "fp8", "kept"});
  if (fields.given("caches")) fields.wholes("caches", -most_values);
  fields.done();
}

Variant read_variant(const Json& value, const std::string& path) {
  Fields fields(value, path);
  Variant variant;
  variant.name = fields.text("name");
  variant.lowering = fields.one_of("lowering", {"portable", "cpu"});
  variant.precision = fields.one_of("precision", {"fp32", "fp16", "bf16", "int8", "int4", "fp8"});
  variant.weights = read_file(fields.object("weights"));
  if (!fields.any("activation_peaks").is_null()) {
    Fields peaks = fields.object("activation_peaks");
    for (const auto& [name, peak] : fields.any("activation_peaks").items()) peaks.number(name.c_str());
  }
  if (fields.has("quantization")) check_quantization(fields.object("quantization"));
  fields.list("graphs",
              [&](const Json& graph, const std::string& where) { variant.graphs.push_back(read_graph(graph, where)); });
  fields.done();
  return variant;
}

Conditioning read_conditioning(Fields fields) {
  Conditioning given;
  given.kind = fields.one_of("kind", {"none", "class-token", "class-label", "features"});
  if (fields.given("num_classes")) given.num_classes = fields.whole("num_classes", 0, 1'000'000);
  if (fields.given("tokens")) given.tokens = fields.whole("tokens", 0, most_tokens);
  if (fields.given("width")) given.width = fields.whole("width", 0, most_tokens);
  if (fields.has("class_names")) {
    fields.list("class_names", [&](const Json& name, const std::string& path) {
      if (!name.is_string()) throw Misfit(path + ": found " + shown(name) + ", expected text");
      given.class_names.push_back(name.get<std::string>());
    });
    if (given.class_names.empty() && given.num_classes > 0)
      throw Misfit("class_names: found 0 names of " + std::to_string(given.num_classes) + " classes");
  }
  fields.done();
  return given;
}

Model read_model(Fields fields) {
  Model model;
  model.family = fields.one_of("family", {"starflow", "tarflow", "continuous-flow"});
  const bool continuous = model.family == "continuous-flow";
  model.data_shape = fields.wholes("data_shape", 1);
  if (model.data_shape.empty() || model.data_shape.size() > 3 || (!continuous && model.data_shape.size() != 3))
    throw Misfit("model.data_shape: found " + std::to_string(model.data_shape.size()) + " sizes");
  std::int64_t values = 1;
  for (const std::int64_t size : model.data_shape) {
    if (values > most_values / size) throw Misfit("model.data_shape: the data are too large");
    values *= size;
  }
  fields.whole("parameters", 0);
  if (continuous) {
    fields.one_of("network", {"transformer", "mlp"});
  } else {
    model.noise_std = fields.at_least_0("noise_std");
    model.noise_as_tokens = fields.one_of("noise_layout", {"image", "tokens"}) == "tokens";
    model.patch_size = fields.whole("patch_size", 1, most_tokens);
    model.channels_last =
        fields.one_of("patch_order", {"row-column-channel", "channel-row-column"}) == "row-column-channel";
    model.tokens = fields.whole("tokens", 1, most_tokens);
    model.token_dim = fields.whole("token_dim", 1, most_values);
  }
  fields.done();
  return model;
}

Segment read_segment(const Json& value, const std::string& path) {
  Fields fields(value, path);
  Segment segment;
  const std::string kind = fields.given("kind") ? fields.one_of("kind", {"steps", "chunk", "window"})
                                                : throw Misfit(path + ".kind: is missing");
  segment.tokens = static_cast<int>(fields.whole("tokens", 1, most_tokens));
  if (kind != "steps") {
    if (fields.has("tolerance")) segment.tolerance = fields.at_least_0("tolerance");
    const std::string guess = fields.given("guess") ? fields.one_of("guess", {"noise", "previous", "zeros"}) : "noise";
    segment.guess = guess == "noise"   ? Segment::Guess::noise
                    : guess == "zeros" ? Segment::Guess::zeros
                                       : Segment::Guess::previous;
    if (fields.has("expected")) fields.above_0("expected");
  }
  if (kind == "chunk") {
    segment.kind = Segment::Kind::chunk;
    segment.passes = static_cast<int>(fields.whole("passes", 1, most_passes));
    segment.largest_change = fields.given("norm") && fields.one_of("norm", {"mean-square", "max"}) == "max";
    segment.whole_batch = fields.given("converged") && fields.one_of("converged", {"image", "batch"}) == "batch";
    segment.exact_caches = fields.given("caches") && fields.one_of("caches", {"reference", "exact"}) == "exact";
  } else if (kind == "window") {
    segment.kind = Segment::Kind::window;
    segment.width = static_cast<int>(fields.whole("width", 2, most_tokens));
    if (fields.has("advances")) {
      std::int64_t sum = 0;
      for (const std::int64_t advance : fields.wholes("advances", 1)) {
        if (advance > segment.width)
          throw Misfit(path + ": advances must be between 1 and the width, " + std::to_string(segment.width));
        segment.advances.push_back(static_cast<int>(advance));
        sum += advance;
      }
      if (sum != segment.tokens)
        throw Misfit(path + ": advances add up to " + std::to_string(sum) + ", the window has " +
                     std::to_string(segment.tokens) + " tokens");
    }
    if (segment.advances.empty() == !segment.tolerance)
      throw Misfit(path + ": a window needs either advances or a tolerance");
  }
  fields.done();
  return segment;
}

DecodePlan read_blocks_of_plan(Fields& fields) {
  DecodePlan plan;
  fields.list("blocks", [&](const Json& value, const std::string& path) {
    Fields entry(value, path);
    BlockPlan block;
    block.block = static_cast<int>(entry.whole("block", 0, most_tokens));
    entry.list("segments", [&](const Json& segment, const std::string& where) {
      block.segments.push_back(read_segment(segment, where));
    });
    entry.done();
    plan.blocks.push_back(block);
  });
  return plan;
}

IntegrationPlan read_integration(Fields fields) {
  IntegrationPlan plan;
  plan.solver = fields.one_of("solver", {"euler", "midpoint", "heun", "rk4", "dopri5"});
  if (plan.solver == "dopri5") {
    plan.tolerance = fields.above_0("tolerance");
    if (plan.tolerance >= 1) fields.misfit("tolerance", plan.tolerance, "less than 1");
  } else {
    fields.list("times", [&](const Json& time, const std::string& path) {
      if (!time.is_number()) throw Misfit(path + ": found " + shown(time) + ", expected a number");
      if (!plan.times.empty() && !(time.get<double>() > plan.times.back()))
        throw Misfit(path + ": the time grid must increase");
      plan.times.push_back(time.get<double>());
    });
    if (plan.times.size() < 2 || plan.times.front() != 0 || plan.times.back() != 1)
      throw Misfit("times: must run from 0 (noise) to 1 (data)");
  }
  fields.done();
  return plan;
}

void check_costs(Fields& fields) {
  fields.list("costs", [](const Json& value, const std::string& path) {
    Fields cost(value, path);
    cost.whole("block", 0);
    cost.at_least_0("prefill_milliseconds");
    cost.at_least_0("step_milliseconds");
    cost.list("runs", [](const Json& run, const std::string& where) {
      Fields one(run, where);
      one.whole("tokens", 1);
      one.at_least_0("milliseconds");
      one.done();
    });
    cost.done();
  });
}

StoredPlan read_stored_plan(const Json& value, const std::string& path, bool continuous) {
  Fields fields(value, path);
  StoredPlan plan;
  plan.backend = fields.text("backend");
  plan.variant = fields.text("variant");
  for (const char* name : {"budget", "passes", "milliseconds"}) fields.above_0(name);
  for (const char* name : {"error", "guidance"}) fields.at_least_0(name);
  fields.whole("images", 1);
  if (continuous) {
    fields.at_least_0("default_error");
    fields.above_0("default_milliseconds");
    plan.integration = read_integration(fields.object("plan"));
  } else {
    fields.above_0("predicted_milliseconds");
    fields.above_0("sequential_milliseconds");
    check_costs(fields);
    plan.decode = read_blocks_of_plan(fields);
  }
  fields.done();
  return plan;
}

Autoencoder read_autoencoder(Fields fields) {
  Autoencoder autoencoder;
  if (!fields.any("encoder").is_null()) autoencoder.encoder = read_network(fields.object("encoder"));
  fields.list("decoders", [&](const Json& value, const std::string& path) {
    Fields decoder(value, path);
    autoencoder.decoders.push_back({read_network(decoder.object("network")), decoder.at_least_0("noise_std")});
    decoder.done();
  });
  if (autoencoder.decoders.empty() || autoencoder.decoders.size() > 2)
    throw Misfit("autoencoder.decoders: expected one or two");
  autoencoder.pixel_shape = fields.wholes("pixel_shape", 1);
  if (autoencoder.pixel_shape.size() != 3) throw Misfit("autoencoder.pixel_shape: expected three sizes");
  fields.done();
  return autoencoder;
}

Text read_text(Fields fields) {
  Text text{read_file(fields.object("tokenizer")), read_network(fields.object("encoder")),
            fields.whole("tokens", 1, most_tokens), fields.text("template")};
  if (text.caption_template.find("{caption}") == std::string::npos)
    fields.misfit("template", text.caption_template, "text that contains {caption}");
  fields.done();
  return text;
}

void read_autoregressive_fields(Fields& fields, Manifest& manifest) {
  if (!fields.any("guidance").is_null()) {
    Fields guidance = fields.object("guidance");
    manifest.guidance_rule = guidance.one_of("rule", {"ratio", "linear"});
    for (const std::int64_t block : guidance.wholes("blocks", 0))
      manifest.guided_blocks.push_back(static_cast<int>(block));
    guidance.done();
  }
  manifest.guided = !manifest.guidance_rule.empty();
  manifest.attention_temperature = fields.truth("attention_temperature");
  manifest.max_chunk = fields.whole("max_chunk", 1, most_tokens);
  if (!fields.any("prior").is_null()) manifest.prior = read_file(fields.object("prior"));
  fields.list("blocks", [&](const Json& value, const std::string& path) {
    Fields block(value, path);
    manifest.blocks.push_back({static_cast<int>(block.whole("index", 0, most_tokens)), block.truth("identity"),
                               block.truth("reversed"), block.whole("rows", 0, 2 * most_batch),
                               block.whole("prefix", 0, most_tokens), block.whole("first_token", 0, 1),
                               block.whole("capacity", 0, 2 * most_tokens)});
    block.done();
  });
}

// A manifest of one shape and one batch size.
Manifest read_one(const Json& content) {
  Fields fields(content, "");
  Manifest manifest;
  fields.whole("schema_version", 1, newest_schema);
  manifest.model = read_model(fields.object("model"));
  const bool continuous = manifest.is_continuous();
  Fields image = fields.object("image");
  manifest.mode = image.one_of("mode", {"L", "RGB", "latent"});
  manifest.scale = image.above_0("scale");
  manifest.shift = image.number("shift");
  image.done();
  manifest.conditioning = read_conditioning(fields.object("conditioning"));
  manifest.batch = fields.whole("batch", 1, most_batch);
  fields.list("variants", [&](const Json& value, const std::string& path) {
    manifest.variants.push_back(read_variant(value, path));
  });
  if (manifest.variants.empty() || manifest.variants.size() > 64) throw Misfit("variants: expected 1 to 64 of them");
  Fields provenance = fields.object("provenance");
  provenance.text("checkpoint_sha256");
  provenance.text("created");
  Fields tools = provenance.object("tools");
  for (const auto& [name, version] : provenance.any("tools").items()) tools.text(name.c_str());
  provenance.done();
  if (fields.has("text")) manifest.text = read_text(fields.object("text"));
  if (fields.has("autoencoder")) manifest.autoencoder = read_autoencoder(fields.object("autoencoder"));
  if (fields.given("denoisers")) {
    fields.list("denoisers", [&](const Json& value, const std::string& path) {
      Fields denoiser(value, path);
      manifest.denoisers.push_back({denoiser.one_of("kind", {"score", "learned"}),
                                    denoiser.one_of("precision", {"fp32", "fp16", "bf16"}),
                                    read_network(denoiser.object("network"))});
      denoiser.done();
    });
  }
  if (fields.given("plans"))
    fields.list("plans", [&](const Json& value, const std::string& path) {
      manifest.plans.push_back(read_stored_plan(value, path, continuous));
    });
  fields.given("batches");
  if (continuous) {
    manifest.guided = fields.truth("guided");
    manifest.max_passes = fields.whole("max_passes", 1, most_tokens);
  } else {
    fields.given("shapes");
    read_autoregressive_fields(fields, manifest);
  }
  fields.done();
  check_manifest(manifest);
  return manifest;
}

// `manifest` with the fields that an entry of `shapes` or `batches` replaces; those that it may leave out have
// `defaults`.
Json replaced(const Json& manifest, const Json& entry, const std::string& path,
              std::initializer_list<const char*> required, const Json& defaults) {
  Fields fields(entry, path);
  Json made = manifest;
  made.update(defaults);
  for (const char* name : required) made[name] = fields.any(name);
  for (const auto& [name, value] : defaults.items()) {
    if (fields.given(name.c_str())) made[name] = fields.any(name.c_str());
  }
  fields.done();
  return made;
}

// What has to be the same for every batch size.
Json of_all_batches(const Json& manifest) {
  Json kept{{"variants", manifest["variants"]},
            {"autoencoder", manifest.value("autoencoder", Json())},
            {"denoisers", manifest.value("denoisers", Json::array())},
            {"blocks", manifest.value("blocks", Json::array())}};
  for (Json& variant : kept["variants"]) variant.erase("graphs");
  for (Json& block : kept["blocks"]) block.erase("rows");
  const auto reduce = [](Json& network) {
    if (network.is_object()) network = network["weights"];
  };
  if (kept["autoencoder"].is_object()) {
    reduce(kept["autoencoder"]["encoder"]);
    for (Json& decoder : kept["autoencoder"]["decoders"]) reduce(decoder["network"]);
  }
  for (Json& denoiser : kept["denoisers"]) reduce(denoiser["network"]);
  return kept;
}

// The manifest of one shape at each of its batch sizes.
std::vector<Manifest> read_batches(const Json& content) {
  std::vector<Manifest> sizes{read_one(content)};
  const Json batches = content.value("batches", Json::array());
  if (!batches.is_array() || batches.size() > 15) throw Misfit("batches: expected a list of at most 15");
  if ((content["schema_version"] > 1) != !batches.empty())
    throw Misfit("schema_version: a bundle of one batch size has 1, one of several has 2");
  const Json own = of_all_batches(content);
  for (std::size_t index = 0; index < batches.size(); ++index) {
    const std::string path = "batches." + std::to_string(index);
    Json defaults{{"autoencoder", nullptr}, {"denoisers", Json::array()}, {"plans", Json::array()}};
    const Json one = sizes[0].is_continuous()
                         ? replaced(content, batches[index], path, {"batch", "variants"}, defaults)
                         : replaced(content, batches[index], path, {"batch", "variants", "blocks"}, defaults);
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
  const Json shapes = manifests[0][0].is_continuous() ? Json::array() : content.value("shapes", Json::array());
  if (!shapes.is_array()) throw Misfit("shapes: found " + shown(shapes) + ", expected a list");
  for (std::size_t index = 0; index < shapes.size(); ++index) {
    const std::string path = "shapes." + std::to_string(index);
    const Json defaults{{"plans", Json::array()},
                        {"text", nullptr},
                        {"autoencoder", nullptr},
                        {"denoisers", Json::array()},
                        {"batches", Json::array()}};
    const Json one = replaced(content, shapes[index], path, {"model", "max_chunk", "blocks", "variants"}, defaults);
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
    Fields fields(content, "");
    DecodePlan plan = read_blocks_of_plan(fields);
    fields.done();
    check_plan(plan, manifest);
    return plan;
  } catch (const Misfit& misfit) {
    usage_error("plan " + name + ": " + misfit.what());
  }
}

IntegrationPlan read_integration_plan(const std::string& text, const std::string& name) {
  try {
    const Json content = parse_json(text);
    return read_integration(Fields(content, ""));
  } catch (const Misfit& misfit) {
    usage_error("plan " + name + ": " + misfit.what());
  }
}

}  // namespace starflow
