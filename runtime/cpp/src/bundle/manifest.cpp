#include "bundle/manifest.hpp"

namespace starflow {

std::size_t item_bytes(Type type) {
  switch (type) {
    case Type::float32:
      return 4;
    case Type::float16:
    case Type::bfloat16:
      return 2;
    case Type::int64:
      return 8;
    case Type::int8:
      return 1;
  }
  return 1;
}

bool TensorSpec::depends_on_run() const {
  for (const std::int64_t size : shape) {
    if (size == tokens_of_run) return true;
  }
  return false;
}

std::int64_t TensorSpec::values(std::int64_t count) const {
  std::int64_t values = 1;
  for (const std::int64_t size : shape) values *= size == tokens_of_run ? count : size;
  return values;
}

std::int64_t Model::data_values() const {
  std::int64_t values = 1;
  for (const std::int64_t size : data_shape) values *= size;
  return values;
}

bool Manifest::makes_images() const {
  if (mode == "latent") return false;
  return autoencoder || (model.data_shape.size() == 3 && model.data_shape[0] == (mode == "L" ? 1 : 3));
}

std::int64_t Model::tokens_of(const Patch& patch) const {
  return data_shape[1] / patch.height * (data_shape[2] / patch.width);
}

std::vector<std::int64_t> Manifest::noise_shape() const {
  if (model.noise_as_tokens) return {model.tokens, model.token_dim};
  return model.data_shape;
}

std::vector<std::int64_t> Manifest::pixel_shape() const {
  if (!makes_images()) return {};
  return autoencoder ? autoencoder->pixel_shape : model.data_shape;
}

std::vector<File> Manifest::files() const {
  std::vector<File> files;
  const auto add = [&files](const Network& network) { files.insert(files.end(), {network.weights, network.file}); };
  if (prior) files.push_back(*prior);
  for (const Variant& variant : variants) {
    files.push_back(variant.weights);
    for (const Graph& graph : variant.graphs) files.push_back(graph.file);
    for (const QuantizedStudent& student : variant.students) add(student.network);
  }
  if (text) {
    add(text->encoder);
    files.push_back(text->tokenizer);
  }
  if (autoencoder) {
    if (autoencoder->encoder) add(*autoencoder->encoder);
    for (const Decoder& decoder : autoencoder->decoders) add(decoder.network);
  }
  for (const Denoiser& denoiser : denoisers) add(denoiser.network);
  for (const Student& student : students) add(student.network);
  return files;
}

const Student* Manifest::student_of(int block) const {
  for (const Student& student : students) {
    if (student.block == block) return &student;
  }
  return nullptr;
}

const StoredPlan* Manifest::plan_for(const std::string& backend, const std::string& variant) const {
  for (const StoredPlan& plan : plans) {
    if (plan.backend == backend && plan.variant == variant) return &plan;
  }
  return nullptr;
}

}  // namespace starflow
