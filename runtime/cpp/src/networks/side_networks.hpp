// The networks of a bundle beside the flow: text encoder, decoders and denoisers, each opened when it is first needed.
#pragma once

#include <vector>

#include "backends/backend.hpp"
#include "conditions.hpp"
#include "starflow/starflow.hpp"

namespace starflow {

// The way of denoising that is meant; a usage error if the bundle does not have it.
Denoise choose_denoising(const Manifest& manifest, Denoise asked);

class SideNetworks {
 public:
  // `manifests` is a shape at each batch size; both must outlive this.
  SideNetworks(const std::vector<Manifest>& manifests, const Variant& variant, Backend& backend);

  // Data [N, *data_shape] to pixels in about [-1, 1], by the plain decoder or the one for noisy latents.
  std::vector<float> decode(const std::vector<float>& data, bool noisy);
  // Removes the noise of training from data, by the score or the learned denoiser.
  void denoise(std::vector<float>& data, const Conditions& conditions, Denoise how, double rate);
  // Features [m, width] of the tokens of a text.
  std::vector<float> encode(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& mask);

 private:
  using Inputs = std::function<NetworkInputs(const Network& network, const std::vector<std::size_t>& index)>;

  // The output of a network for N samples, given at each batch size.
  std::vector<float> run(const std::vector<const Network*>& networks, std::size_t count, const Inputs& inputs);

  const std::vector<Manifest>& manifests_;
  const Variant& variant_;
  Backend& backend_;
  std::vector<std::int64_t> sizes_;
};

}  // namespace starflow
