// Samples two digits and draws them in the terminal: digits BUNDLE
#include <cstdio>
#include <starflow/starflow.hpp>

int main(int count, char** values) {
  if (count != 2) return std::fputs("usage: digits BUNDLE\n", stderr), 2;
  try {
    starflow::Sampler sampler = starflow::Sampler::open(values[1]);
    starflow::Request request;
    request.labels = {3, 7};
    request.guidance = {starflow::Guidance{2.0}};
    request.progress = [](std::size_t done, std::size_t total) {
      std::fprintf(stderr, "\r%zu of %zu tokens", done, total);
      return true;  // false cancels
    };
    const starflow::Images images = sampler.to_images(sampler.generate(sampler.noise(2, /*seed=*/7), request));
    std::fputs("\n", stderr);
    for (std::size_t row = 0; row < images.count * images.height; ++row) {
      for (std::size_t column = 0; column < images.width; ++column) {
        std::fputs(images.pixels[(row * images.width + column) * images.channels] < 128 ? "  " : "##", stdout);
      }
      std::puts("");
    }
  } catch (const starflow::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
