// The manifest of a bundle at one shape and one batch size. docs/bundle.md explains every field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plans/decode_plan.hpp"

namespace starflow {

enum class Type { float32, float16, bfloat16, int64, int8 };

std::size_t item_bytes(Type type);

struct File {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

constexpr std::int64_t tokens_of_run = -1;  // "S" in a shape

struct TensorSpec {
  std::string name;
  Type type = Type::float32;
  std::vector<std::int64_t> shape;
  std::string role;
  std::string updated_by;  // empty if nothing updates it

  bool depends_on_run() const;
  std::int64_t values(std::int64_t count) const;  // in a run of `count` tokens
};

struct Graph {
  int block = 0;
  File file;
  std::vector<TensorSpec> inputs, outputs;
  std::int64_t weight_bytes = 0;
};

// A graph beside the flow, whose shapes are fixed.
struct Network {
  File file, weights;
  std::vector<TensorSpec> inputs, outputs;
};

// A student with weights of 8 bits, which a variant runs in place of the one in float32.
struct QuantizedStudent {
  int block = 0;
  Network network;
};

struct Variant {
  std::string name, lowering, precision;
  File weights;
  std::vector<Graph> graphs;
  std::vector<QuantizedStudent> students;
};

struct Conditioning {
  std::string kind;
  std::int64_t num_classes = 0, tokens = 0, width = 0;
  std::vector<std::string> class_names;
};

// Height and width in pixels of the data.
struct Patch {
  std::int64_t height = 1, width = 1;

  bool operator==(const Patch& other) const { return height == other.height && width == other.width; }
};

struct Model {
  std::string family;
  double noise_std = 0;
  std::vector<std::int64_t> data_shape;
  bool noise_as_tokens = false;
  std::int64_t patch_size = 1;
  bool channels_last = true;  // patch_order `row-column-channel`
  std::int64_t tokens = 0, token_dim = 0;

  std::int64_t data_values() const;
  Patch patch() const { return {patch_size, patch_size}; }
  std::int64_t tokens_of(const Patch& patch) const;  // in data of whole patches
  std::int64_t values_of(const Patch& patch) const { return data_shape[0] * patch.height * patch.width; }
};

struct Block {
  int index = 0;
  bool identity = false, reversed = false;
  std::int64_t rows = 0, prefix = 0, first_token = 0, capacity = 0;
  Patch patch;  // that its tokens are

  int tokens() const { return static_cast<int>(capacity - prefix); }  // that are decoded
};

struct Decoder {
  Network network;
  double noise_std = 0;
};

struct Autoencoder {
  std::optional<Network> encoder;
  std::vector<Decoder> decoders;
  std::vector<std::int64_t> pixel_shape;
};

struct Denoiser {
  std::string kind, precision;
  Network network;
};

// A network that does a flow block in one pass.
struct Student {
  int block = 0;
  std::string teacher;  // SHA-256 of the weights of the checkpoint it was distilled from
  double least_guidance = 0, largest_guidance = 0;
  Network network;
};

struct Text {
  File tokenizer;
  Network encoder;
  std::int64_t tokens = 0;
  std::string caption_template;
};

struct Manifest {
  Model model;
  std::string mode;  // of the image: L, RGB or latent
  double scale = 1, shift = 0;
  Conditioning conditioning;
  std::int64_t batch = 0;
  std::vector<Variant> variants;
  std::vector<StoredPlan> plans;
  std::optional<Text> text;
  std::optional<Autoencoder> autoencoder;
  std::vector<Denoiser> denoisers;
  std::string checkpoint_sha256;
  bool guided = false;  // whether it takes a guidance weight

  // Of an autoregressive flow.
  std::string guidance_rule;  // ratio or linear; empty without guidance
  std::vector<int> guided_blocks;
  bool attention_temperature = false;
  std::int64_t max_chunk = 1;
  std::optional<File> prior;
  std::vector<Block> blocks;
  std::vector<Student> students;

  // Of a continuous flow.
  std::int64_t max_passes = 0;

  bool is_continuous() const { return model.family == "continuous-flow"; }
  bool makes_images() const;
  std::vector<std::int64_t> noise_shape() const;
  std::vector<std::int64_t> pixel_shape() const;  // of what it makes, if it makes images
  std::vector<File> files() const;
  const Student* student_of(int block) const;  // null without one
  const StoredPlan* plan_for(const std::string& backend, const std::string& variant) const;
};

// A manifest at each of its shapes, the default one first, and for each of them at every batch size, the largest first.
using Manifests = std::vector<std::vector<Manifest>>;

// Reads the text of a manifest as strictly as the Python runtime does: every field, and what has to fit together.
// `name` is the file's, for messages.
Manifests read_manifests(const std::string& text, const std::string& name);

// Reads a plan's file, of a continuous flow or not, and sees that it fits.
DecodePlan read_decode_plan(const std::string& text, const std::string& name, const Manifest& manifest);
IntegrationPlan read_integration_plan(const std::string& text, const std::string& name);

}  // namespace starflow
