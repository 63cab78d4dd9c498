// `starflow-run`: samples images from a bundle.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "arguments.hpp"
#include "npy.hpp"
#include "png.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One value for all images, or those given in turn.
template <typename Value>
std::vector<Value> for_each(const std::vector<Value>& given, std::size_t count) {
  std::vector<Value> values;
  for (std::size_t image = 0; image < count && given.size() > 1; ++image) values.push_back(given[image % given.size()]);
  return given.size() > 1 ? values : given;
}

std::string quoted(const std::string& text) {
  std::string made = "\"";
  for (const char each : text) made += each == '"' || each == '\\' ? std::string{'\\', each} : std::string(1, each);
  return made + "\"";
}

struct Sampled {
  std::size_t count = 0;
  double seconds = 0;
  std::vector<double> repetitions;  // seconds of each of --bench
  std::size_t work = 0;             // tokens of all batches
};

Sampled run(const Arguments& arguments, starflow::Sampler& sampler) {
  starflow::Request request;
  Array condition, noise;
  if (!arguments.condition.empty()) condition = read_npy(arguments.condition);
  if (!arguments.null_condition.empty()) request.null_condition = read_npy(arguments.null_condition).values;
  if (!arguments.noise.empty()) noise = read_npy(arguments.noise);
  const std::size_t conditions = condition.shape.size() == 3 ? static_cast<std::size_t>(condition.shape[0]) : 1;
  const std::size_t given = std::max({arguments.labels.size(), conditions, arguments.seeds.size(),
                                      noise.shape.empty() ? std::size_t{1} : static_cast<std::size_t>(noise.shape[0])});
  Sampled made;
  made.count = arguments.count == 0 ? given : arguments.count;
  request.condition = condition.values;
  request.labels = for_each(arguments.labels, made.count);
  for (const double weight : arguments.guidance) {
    request.guidance.emplace_back();
    request.guidance.back().weight = weight;
  }
  request.denoise = arguments.denoise;
  request.denoising_rate = arguments.denoising_rate;
  request.progress = [&made](std::size_t, std::size_t total) {
    made.work = total;
    return true;
  };
  if (noise.values.empty()) {
    noise.values = arguments.seeds.size() > 1 ? sampler.noise(arguments.seeds, arguments.temperature)
                                              : sampler.noise(made.count, arguments.seeds[0], arguments.temperature);
  }
  const auto start = Clock::now();
  const std::vector<float> data = sampler.generate(noise.values, request);
  made.seconds = seconds_since(start);
  for (std::size_t repetition = 0; repetition < arguments.bench; ++repetition) {
    const auto again = Clock::now();
    sampler.generate(noise.values, request);
    made.repetitions.push_back(seconds_since(again));
  }
  std::sort(made.repetitions.begin(), made.repetitions.end());
  if (!arguments.latents.empty()) {
    Array latents{{static_cast<std::int64_t>(made.count)}, data};
    latents.shape.insert(latents.shape.end(), sampler.data_shape().begin(), sampler.data_shape().end());
    write_npy(arguments.latents, latents);
  }
  if (sampler.description().makes_images)
    write_png(arguments.out, grid(sampler.to_images(data, arguments.denoise), arguments.columns));
  return made;
}

void report(const Arguments& arguments, const starflow::Sampler& sampler, const Sampled& made) {
  const starflow::Description& about = sampler.description();
  const double median = made.repetitions.empty() ? 0 : made.repetitions[made.repetitions.size() / 2];
  const double token = made.work == 0 ? 0 : 1e6 * median / static_cast<double>(made.work);
  const double rate = static_cast<double>(made.count) / made.seconds;
  if (arguments.json) {
    std::printf(
        "{\"images\": %zu, \"seconds\": %.6f, \"images_per_second\": %.6f, \"variant\": %s, \"backend\": %s, "
        "\"release\": %s",
        made.count, made.seconds, rate, quoted(about.variant).c_str(), quoted(about.backend).c_str(),
        quoted(about.release).c_str());
    if (!made.repetitions.empty())
      std::printf(", \"median_seconds\": %.6f, \"microseconds_per_token\": %.3f", median, token);
    std::printf("}\n");
    return;
  }
  std::printf("%s: %zu images in %.2f s, %.2f images/s, %s on %s %s\n",
              about.makes_images ? arguments.out.c_str() : arguments.latents.c_str(), made.count, made.seconds, rate,
              about.variant.c_str(), about.backend.c_str(), about.release.c_str());
  if (!made.repetitions.empty())
    std::printf("median of %zu: %.2f ms, %.1f us for each token of a batch\n", made.repetitions.size(), 1e3 * median,
                token);
}

}  // namespace

int main(int count, char** values) {
  try {
    const Arguments arguments = parse(count, values);
    if (arguments.help) {
      std::fputs(help_text, stdout);
      return 0;
    }
    starflow::Sampler sampler = starflow::Sampler::open(arguments.bundle, arguments.options);
    if (!sampler.description().makes_images && arguments.latents.empty())
      throw starflow::Error(starflow::ErrorKind::usage, "this bundle makes no images; name a .npy file with --latents");
    report(arguments, sampler, run(arguments, sampler));
    return 0;
  } catch (const starflow::Error& error) {
    std::fprintf(stderr, "starflow-run: %s\n", error.what());
    return error.kind() == starflow::ErrorKind::usage ? 2 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "starflow-run: %s\n", error.what());
    return 1;
  }
}
