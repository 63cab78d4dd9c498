#include "networks/side_networks.hpp"

#include <algorithm>
#include <cmath>

#include "batches.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr double learned_std = 0.3;  // the published constant: learned denoisers are trained for it

void check_finite(const std::vector<float>& values, const std::string& message) {
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
    backend_error(message);
}

// The values of the images in `index`, one after the other.
std::vector<float> gathered(const std::vector<float>& values, std::size_t size, const std::vector<std::size_t>& index) {
  std::vector<float> part;
  for (const std::size_t image : index)
    part.insert(part.end(), values.begin() + static_cast<std::ptrdiff_t>(image * size),
                values.begin() + static_cast<std::ptrdiff_t>((image + 1) * size));
  return part;
}

// The denoiser that shares the variant's weights, else the one of highest precision.
const Network& choose_denoiser(const Manifest& manifest, const std::string& kind, const std::string& precision) {
  for (const std::string& wanted : {precision, std::string("fp32"), std::string("fp16"), std::string("bf16")}) {
    for (const Denoiser& denoiser : manifest.denoisers) {
      if (denoiser.kind == kind && denoiser.precision == wanted) return denoiser.network;
    }
  }
  bundle_error("the bundle has no denoiser of kind " + kind + " at this batch size");
}

}  // namespace

Denoise choose_denoising(const Manifest& manifest, Denoise asked) {
  const auto has = [&](const char* kind) {
    return std::any_of(manifest.denoisers.begin(), manifest.denoisers.end(),
                       [&](const Denoiser& each) { return each.kind == kind; });
  };
  const bool decoder = manifest.autoencoder && manifest.autoencoder->decoders.size() > 1;
  switch (asked) {
    case Denoise::automatic:
      return decoder ? Denoise::decoder : Denoise::none;
    case Denoise::none:
      return asked;
    case Denoise::score:
      if (!manifest.is_continuous() && has("score")) return asked;
      usage_error("denoise score: this bundle has no score; `starflow export --denoise score` adds it");
    case Denoise::learned:
      if (!manifest.is_continuous() && has("learned")) return asked;
      usage_error(
          "denoise learned: this bundle has no learned denoiser; `starflow export --denoise learned` adds it if the "
          "model has one");
    case Denoise::decoder:
      if (decoder) return asked;
      usage_error("denoise decoder: this bundle has no decoder that was trained on noisy latents");
  }
  usage_error("denoise: choose auto, none, score, learned or decoder");
}

SideNetworks::SideNetworks(const std::vector<Manifest>& manifests, const Variant& variant, Backend& backend)
    : manifests_(manifests), variant_(variant), backend_(backend) {
  for (const Manifest& manifest : manifests) sizes_.push_back(manifest.batch);
}

std::vector<float> SideNetworks::run(const std::vector<const Network*>& networks, std::size_t count,
                                     const Inputs& inputs) {
  std::vector<float> output;
  for (const BatchOfImages& batch : batches(count, sizes_)) {
    const Network& network = *networks[batch.size_index];
    const std::vector<float> part = backend_.run_network(network, inputs(network, batch.index));
    const std::size_t wanted = part.size() / batch.index.size() * batch.count;
    output.insert(output.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(wanted));
  }
  return output;
}

std::vector<float> SideNetworks::decode(const std::vector<float>& data, bool noisy) {
  std::vector<const Network*> networks;
  for (const Manifest& manifest : manifests_) {
    if (manifest.autoencoder) networks.push_back(&manifest.autoencoder->decoders[noisy ? 1 : 0].network);
  }
  const auto scale = static_cast<float>(manifests_[0].scale), shift = static_cast<float>(manifests_[0].shift);
  const auto size = static_cast<std::size_t>(manifests_[0].model.data_values());
  std::vector<float> latent;
  std::vector<float> pixels =
      run(networks, data.size() / size, [&](const Network& network, const std::vector<std::size_t>& index) {
        latent = gathered(data, size, index);
        for (float& value : latent) value = value / scale + shift;
        return NetworkInputs{{network.inputs[0].name, latent.data()}};
      });
  check_finite(pixels, "the decoder produced NaN or infinity; `starflow verify --hashes` checks its weights");
  return pixels;
}

void SideNetworks::denoise(std::vector<float>& data, const Conditions& conditions, Denoise how, double rate) {
  const std::string kind = how == Denoise::score ? "score" : "learned";
  std::vector<const Network*> networks;
  for (const Manifest& manifest : manifests_) networks.push_back(&choose_denoiser(manifest, kind, variant_.precision));
  const Model& model = manifests_[0].model;
  const auto size = static_cast<std::size_t>(model.data_values());
  std::vector<float> x;
  BatchConditions given;
  const std::vector<float> found =
      run(networks, data.size() / size, [&](const Network& network, const std::vector<std::size_t>& index) {
        x = gathered(data, size, index);
        given = conditions.of(index);
        NetworkInputs inputs;
        for (const TensorSpec& spec : network.inputs) {
          if (spec.role == "x") inputs[spec.name] = x.data();
          if (spec.role == "condition" && given.tokens.size() == static_cast<std::size_t>(spec.values(1)))
            inputs[spec.name] = given.tokens.data();
          if (spec.role == "label" && given.labels.size() == static_cast<std::size_t>(spec.values(1)))
            inputs[spec.name] = given.labels.data();
          if (inputs.count(spec.name) == 0)
            bundle_error(network.file.path + ": takes " + spec.name +
                         ", which does not fit the model; export the bundle again");
        }
        return inputs;
      });
  const auto step =
      static_cast<float>(rate * (how == Denoise::score ? model.noise_std * model.noise_std : -learned_std));
  for (std::size_t index = 0; index < data.size(); ++index) data[index] += step * found[index];
  check_finite(data, "the " + kind + " denoiser produced NaN or infinity; sample with denoise none");
}

std::vector<float> SideNetworks::encode(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& mask) {
  const std::optional<Text>& text = manifests_[0].text;
  if (!text) usage_error("this bundle has no text encoder; give features as the condition");
  if (ids.size() != static_cast<std::size_t>(text->tokens) || mask.size() != ids.size()) {
    usage_error(std::to_string(ids.size()) + " ids and " + std::to_string(mask.size()) +
                " values of the mask; the text encoder takes " + std::to_string(text->tokens) + " of each");
  }
  NetworkInputs inputs;
  for (const TensorSpec& spec : text->encoder.inputs) inputs[spec.name] = spec.role == "ids" ? ids.data() : mask.data();
  return backend_.run_network(text->encoder, inputs);
}

}  // namespace starflow
