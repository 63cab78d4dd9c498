// The arguments of `starflow-run`.
#pragma once

#include <starflow/starflow.hpp>
#include <string>
#include <vector>

struct Arguments {
  std::string bundle, out = "samples.png", latents, noise, condition, null_condition;
  starflow::Options options;
  std::vector<std::int64_t> labels;
  std::vector<double> guidance;
  std::vector<std::uint64_t> seeds{0};
  std::size_t count = 0, columns = 0, bench = 0;
  float temperature = 1;
  double denoising_rate = 1;
  starflow::Denoise denoise = starflow::Denoise::automatic;
  bool json = false, help = false;
};

extern const char* const help_text;

// Throws starflow::Error of kind usage.
Arguments parse(int count, char** values);
