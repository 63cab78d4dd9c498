#include "bundle/manifest_checks.hpp"

#include <algorithm>
#include <map>

#include "plain/json.hpp"

namespace starflow {
namespace {

using Sizes = std::vector<std::int64_t>;

struct Expected {
  Type type;
  Sizes shape;
  bool optional = false;
};

std::string shown(const Sizes& shape) {
  std::string text;
  for (const std::int64_t size : shape)
    text += (text.empty() ? "" : ", ") + (size == tokens_of_run ? "S" : std::to_string(size));
  return "[" + text + "]";
}

Sizes batched(std::int64_t batch, const Sizes& shape) {
  Sizes sizes{batch};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  return sizes;
}

// Sees that tensors are those of `expected`, by role, each once; caches are left out.
void check_tensors(const std::string& where, const std::vector<TensorSpec>& specs,
                   const std::map<std::string, Expected>& expected, const char* verb) {
  std::map<std::string, int> found;
  for (const TensorSpec& spec : specs) {
    if (spec.role == "cache") continue;
    const auto wanted = expected.find(spec.role);
    if (wanted == expected.end()) throw Misfit(where + " " + verb + " " + spec.role + ", which does not fit the model");
    if (found[spec.role]++ > 0) throw Misfit(where + " " + verb + " " + spec.role + " twice");
    if (spec.type != wanted->second.type || spec.shape != wanted->second.shape) {
      throw Misfit(where + " " + verb + " " + spec.role + " " + shown(spec.shape) +
                   " or its type does not fit, expected " + shown(wanted->second.shape));
    }
  }
  for (const auto& [role, wanted] : expected) {
    if (!wanted.optional && found.count(role) == 0) throw Misfit(where + " " + verb + " no " + role);
  }
}

// Each cache, and the samples, are updated by an output of their type and shape; nothing else is updated.
void check_updates(const std::string& where, const Graph& graph) {
  const auto is_kept = [](const TensorSpec& spec) { return spec.role == "cache" || spec.role == "samples"; };
  std::map<std::string, const TensorSpec*> outputs;
  for (const TensorSpec& spec : graph.outputs) {
    if (is_kept(spec) && !outputs.emplace(spec.name, &spec).second)
      throw Misfit(where + " makes " + spec.name + " twice");
  }
  for (const TensorSpec& spec : graph.inputs) {
    if (is_kept(spec) != !spec.updated_by.empty())
      throw Misfit(where + " has " + spec.name + ", which is not updated as its role says");
    if (spec.updated_by.empty()) continue;
    const auto made = outputs.find(spec.updated_by);
    if (made == outputs.end()) throw Misfit(where + " has cache inputs and outputs that do not pair up");
    if (made->second->type != spec.type || made->second->shape != spec.shape || made->second->role != spec.role) {
      throw Misfit(where + " updates " + spec.name + " by " + spec.updated_by + ", which has another type or shape");
    }
    outputs.erase(made);
  }
  if (!outputs.empty()) throw Misfit(where + " has cache inputs and outputs that do not pair up");
}

// All caches have one shape: [rows, heads, slots, width], or [1, rows x heads, slots, width]. Slots are the capacity, or that
// rounded up to a multiple of eight.
void check_caches(const std::string& where, const Graph& graph, const Block& block) {
  const Sizes* first = nullptr;
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.role != "cache") continue;
    if (first == nullptr) first = &spec.shape;
    const Sizes& shape = spec.shape;
    const bool fits = shape == *first && shape.size() == 4 && !spec.depends_on_run() && spec.type != Type::int64 &&
                      (shape[0] == 1 || shape[0] == block.rows) && shape[0] * shape[1] % block.rows == 0 &&
                      (shape[2] == block.capacity || shape[2] == (block.capacity + 7) / 8 * 8);
    if (!fits)
      throw Misfit(where + " has caches of shape " + shown(shape) + ", which do not hold " +
                   std::to_string(block.rows) + " rows of " + std::to_string(block.capacity) + " positions");
  }
  if (first == nullptr) throw Misfit(where + " has no caches");
}

void check_step_graph(const std::string& where, const Graph& graph, const Manifest& manifest) {
  const Block& block = manifest.blocks[static_cast<std::size_t>(graph.block)];
  const std::int64_t batch = manifest.batch, width = manifest.model.values_of(block.patch);
  const bool guided = std::count(manifest.guided_blocks.begin(), manifest.guided_blocks.end(), block.index) > 0;
  const Expected run{Type::float32, {batch, tokens_of_run, width}}, each{Type::float32, {batch}};
  const Expected samples{Type::float32, {batch, 1, block.capacity, width}};
  std::map<std::string, Expected> inputs{{"position", {Type::int64, {1}}},
                                         {"previous", run},
                                         {"samples", samples},
                                         {"noise", {Type::float32, {batch, block.capacity, width}}}};
  if (block.prefix > 0) inputs["condition"] = {Type::float32, {block.rows, tokens_of_run, manifest.conditioning.width}};
  if (manifest.conditioning.kind == "class-label") inputs["label"] = {Type::int64, {block.rows}};
  if (guided && manifest.guidance_rule == "ratio") inputs["guidance"] = each;
  if (guided && manifest.guidance_rule == "linear") {
    inputs["guidance_scale"] = {Type::float32, {batch}, true};
    inputs["guidance_shift"] = inputs["guidance_anneal"] = each;
  }
  if (manifest.attention_temperature) inputs["inverse_temperature"] = {Type::float32, {block.rows}};
  check_tensors(where, graph.inputs, inputs, "takes");
  check_tensors(where, graph.outputs, {{"token", run}, {"samples", samples}, {"position", {Type::int64, {1}, true}}},
                "makes");
  check_updates(where, graph);
  check_caches(where, graph, block);
}

void check_velocity_graph(const std::string& where, const Graph& graph, const Manifest& manifest) {
  const Conditioning& given = manifest.conditioning;
  const std::int64_t rows = manifest.batch * (manifest.guided ? 2 : 1);
  const Expected state{Type::float32, batched(manifest.batch, manifest.model.data_shape)};
  std::map<std::string, Expected> outputs{
      {"x", state}, {"point", state}, {"total", state}, {"pass", {Type::int64, {1}}}},
      inputs = outputs;
  outputs["velocity"] = state;
  inputs["passes"] = {Type::float32, {manifest.max_passes, 4}};
  if (given.kind == "class-label") inputs["label"] = {Type::int64, {rows}};
  if (given.tokens > 0) inputs["condition"] = {Type::float32, {rows, given.tokens, given.width}};
  if (manifest.guided) inputs["guidance"] = {Type::float32, {manifest.batch}};
  check_tensors(where, graph.inputs, inputs, "takes");
  check_tensors(where, graph.outputs, outputs, "makes");
}

void check_blocks(const Manifest& manifest) {
  const Model& model = manifest.model;
  const std::int64_t patch = model.patch_size, height = model.data_shape[1], width = model.data_shape[2];
  if (height % patch != 0 || width % patch != 0 || model.tokens != (height / patch) * (width / patch) ||
      model.token_dim != model.data_shape[0] * patch * patch) {
    throw Misfit("model: " + std::to_string(model.tokens) + " tokens of " + std::to_string(model.token_dim) +
                 " values do not fill data of shape " + shown(model.data_shape));
  }
  std::int64_t longest = 1;
  for (std::size_t index = 0; index < manifest.blocks.size(); ++index) {
    const Block& block = manifest.blocks[index];
    if (block.index != static_cast<int>(index))
      throw Misfit("blocks: must be in the order of their index, with none left out");
    longest = std::max(longest, block.capacity);
    if (block.identity) continue;
    if (height % block.patch.height != 0 || width % block.patch.width != 0) {
      throw Misfit("blocks." + std::to_string(index) + ": data of shape " + shown(model.data_shape) +
                   " do not consist of " + std::to_string(block.patch.height) + "x" +
                   std::to_string(block.patch.width));
    }
    const bool guided = std::count(manifest.guided_blocks.begin(), manifest.guided_blocks.end(), block.index) > 0;
    if (block.rows != manifest.batch * (guided ? 2 : 1) ||
        (block.prefix != 0 && block.prefix != manifest.conditioning.tokens) ||
        block.capacity != block.prefix + model.tokens_of(block.patch) - block.first_token || block.capacity < 1) {
      throw Misfit("blocks." + std::to_string(index) +
                   ": rows, prefix or capacity do not fit batch, conditioning and tokens");
    }
  }
  if (manifest.max_chunk > longest)
    throw Misfit("max_chunk " + std::to_string(manifest.max_chunk) + ": exceeds the capacity of every block");
}

void check_variants(const Manifest& manifest) {
  std::vector<int> working;
  if (manifest.is_continuous()) working = {0};
  for (const Block& block : manifest.blocks) {
    if (!block.identity) working.push_back(block.index);
  }
  for (const Variant& variant : manifest.variants) {
    std::vector<int> found;
    for (const Graph& graph : variant.graphs) found.push_back(graph.block);
    if (found != working)
      throw Misfit("variant " + variant.name + ": must have one graph for each flow block that is no identity");
    for (const Graph& graph : variant.graphs) {
      const std::string where = "variant " + variant.name + ", block " + std::to_string(graph.block) + ":";
      manifest.is_continuous() ? check_velocity_graph(where, graph, manifest)
                               : check_step_graph(where, graph, manifest);
    }
  }
}

void check_network(const std::string& where, const Network& network, const std::map<std::string, Sizes>& inputs,
                   const std::map<std::string, Sizes>& outputs) {
  const auto check = [&](const std::vector<TensorSpec>& specs, const std::map<std::string, Sizes>& shapes,
                         const char* verb) {
    for (const auto& [role, shape] : shapes) {
      const bool found =
          std::any_of(specs.begin(), specs.end(), [&, &role_ = role, &shape_ = shape](const TensorSpec& spec) {
            return spec.role == role_ && spec.shape == shape_;
          });
      if (!found) throw Misfit(where + ": " + network.file.path + " must " + verb + " " + role + " " + shown(shape));
    }
  };
  check(network.inputs, inputs, "take");
  check(network.outputs, outputs, "make");
  if (network.outputs.size() != 1) throw Misfit(where + ": " + network.file.path + " must make one output");
}

void check_networks(const Manifest& manifest) {
  const Sizes state = batched(manifest.batch, manifest.model.data_shape);
  const Conditioning& given = manifest.conditioning;
  if (manifest.autoencoder) {
    const Autoencoder& autoencoder = *manifest.autoencoder;
    const Sizes pixels = batched(manifest.batch, autoencoder.pixel_shape);
    if (manifest.mode != "latent" && autoencoder.pixel_shape[0] != (manifest.mode == "L" ? 1 : 3)) {
      throw Misfit("autoencoder: has " + std::to_string(autoencoder.pixel_shape[0]) + " channels, the image mode is " +
                   manifest.mode);
    }
    if (autoencoder.encoder)
      check_network("autoencoder", *autoencoder.encoder, {{"pixels", pixels}}, {{"latent", state}});
    for (std::size_t index = 0; index < autoencoder.decoders.size(); ++index) {
      const Decoder& decoder = autoencoder.decoders[index];
      if ((decoder.noise_std > 0) != (index == 1))
        throw Misfit("decoders: must be the plain one (noise_std 0), then the one for noisy latents if there is one");
      check_network("autoencoder", decoder.network, {{"latent", state}}, {{"pixels", pixels}});
    }
  }
  for (const Denoiser& denoiser : manifest.denoisers) {
    check_network("denoisers", denoiser.network, {{"x", state}},
                  {{denoiser.kind == "score" ? "score" : "prediction", state}});
  }
  if (manifest.text) {
    const Text& text = *manifest.text;
    if (given.kind != "features" || given.tokens != text.tokens)
      throw Misfit("text: has " + std::to_string(text.tokens) + " tokens, the condition has " +
                   std::to_string(given.tokens) + " of kind " + given.kind);
    const Sizes ids{1, text.tokens};
    check_network("text", text.encoder, {{"ids", ids}, {"mask", ids}}, {{"features", {1, given.tokens, given.width}}});
  }
}

// Sees that the network of a student takes and makes what its flow block does.
void check_student_network(const Manifest& manifest, int block, const Network& network, const std::string& of) {
  const Conditioning& given = manifest.conditioning;
  const std::string where = of + ": " + network.file.path;
  const Patch& patch = manifest.blocks[static_cast<std::size_t>(block)].patch;
  const Expected tokens{Type::float32,
                        {manifest.batch, manifest.model.tokens_of(patch), manifest.model.values_of(patch)}};
  std::map<std::string, Expected> inputs{{"noise", tokens}, {"guidance", {Type::float32, {manifest.batch}}}};
  if (given.kind == "class-label") {
    inputs["label"] = {Type::int64, {manifest.batch}, true};
  } else if (given.tokens > 0) {
    inputs["condition"] = {Type::float32, {manifest.batch, given.tokens, given.width}, true};
  }
  for (const auto* specs : {&network.inputs, &network.outputs}) {
    for (const TensorSpec& spec : *specs) {
      if (spec.role == "cache") throw Misfit(where + " has a cache, which does not fit the model");
    }
  }
  check_tensors(where, network.inputs, inputs, "takes");
  check_tensors(where, network.outputs, {{"token", tokens}}, "makes");
}

void check_students(const Manifest& manifest) {
  int before = -1;
  for (const Student& student : manifest.students) {
    const bool known = student.block > before && student.block < static_cast<int>(manifest.blocks.size()) &&
                       !manifest.blocks[static_cast<std::size_t>(student.block)].identity;
    if (!known)
      throw Misfit("students: flow block " + std::to_string(student.block) +
                   " decodes no tokens, or is not in order");
    before = student.block;
    if (student.teacher != manifest.checkpoint_sha256)
      throw Misfit("students: that of flow block " + std::to_string(student.block) +
                   " was distilled from another checkpoint");
    if (student.least_guidance > student.largest_guidance)
      throw Misfit("students: " + student.network.file.path +
                   " has a range of guidance that does not begin with the lower weight");
    check_student_network(manifest, student.block, student.network, "students");
  }
  for (const Variant& variant : manifest.variants) {
    int last = -1;
    for (const QuantizedStudent& student : variant.students) {
      if (student.block <= last || manifest.student_of(student.block) == nullptr)
        throw Misfit("variant " + variant.name + ": flow block " + std::to_string(student.block) +
                     " has no student, or is not in order");
      last = student.block;
      check_student_network(manifest, student.block, student.network, "variant " + variant.name);
    }
  }
}

void check_conditioning(const Conditioning& given) {
  const bool sized = given.tokens == 1 && given.width == given.num_classes + 1,
             unsized = given.tokens == 0 && given.width == 0;
  const bool fits = given.kind == "none"          ? given.num_classes == 0 && unsized
                    : given.kind == "class-token" ? given.num_classes > 0 && sized
                    : given.kind == "class-label" ? given.num_classes > 0 && unsized
                                                  : given.num_classes == 0 && given.tokens > 0 && given.width > 0;
  if (!fits)
    throw Misfit("conditioning: tokens and width do not fit " + std::to_string(given.num_classes) + " classes (" +
                 given.kind + ")");
  if (!given.class_names.empty() && given.class_names.size() != static_cast<std::size_t>(given.num_classes)) {
    throw Misfit("class_names: found " + std::to_string(given.class_names.size()) + " names of " +
                 std::to_string(given.num_classes) + " classes");
  }
}

}  // namespace

void check_plan(const DecodePlan& plan, const Manifest& manifest, bool stored) {
  std::map<int, int> times;
  for (const BlockPlan& each : plan.blocks) {
    const std::string where = "flow block " + std::to_string(each.block);
    const bool known = each.block < static_cast<int>(manifest.blocks.size()) &&
                       !manifest.blocks[static_cast<std::size_t>(each.block)].identity;
    if (!known || times[each.block]++ > 0) throw Misfit(where + " is none that decodes tokens, or occurs twice");
    std::int64_t covered = 0;
    for (const Segment& segment : each.segments) {
      covered += segment.tokens;
      if (segment.kind == Segment::Kind::student && (stored || manifest.student_of(each.block) == nullptr))
        throw Misfit(where + (stored ? " has a student, which a plan of the bundle's own may not run"
                                     : " has no student in this bundle; `starflow export --student` adds one"));
      if (segment.kind == Segment::Kind::student && each.segments.size() > 1)
        throw Misfit(where + " has a student and further segments; a student makes all tokens of its block");
      if (segment.widest_run() > manifest.max_chunk)
        throw Misfit(where + " has a run of " + std::to_string(segment.widest_run()) +
                     " tokens; this bundle was exported for 1 to " + std::to_string(manifest.max_chunk));
      if (manifest.batch > 1 && segment.kind == Segment::Kind::window && segment.tolerance)
        throw Misfit(where + " has a window with a tolerance, which is for a batch of 1");
    }
    const int tokens = manifest.blocks[static_cast<std::size_t>(each.block)].tokens();
    if (covered != tokens)
      throw Misfit("the segments of " + where + " have " + std::to_string(covered) + " tokens, the block has " +
                   std::to_string(tokens));
  }
}

void check_manifest(const Manifest& manifest) {
  check_conditioning(manifest.conditioning);
  if (!manifest.is_continuous()) check_blocks(manifest);
  check_variants(manifest);
  check_networks(manifest);
  check_students(manifest);
  for (const StoredPlan& plan : manifest.plans) {
    const bool known = std::any_of(manifest.variants.begin(), manifest.variants.end(),
                                   [&](const Variant& variant) { return variant.name == plan.variant; });
    if (!known) throw Misfit("plans: found variant " + plan.variant + ", which the bundle does not have");
    if (!manifest.is_continuous()) check_plan(plan.decode, manifest, true);
  }
}

}  // namespace starflow
