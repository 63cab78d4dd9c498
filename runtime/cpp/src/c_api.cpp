// The flat C API: statuses in place of exceptions, and arrays that belong to the caller.
#include <algorithm>
#include <cstring>

#include "plain/error.hpp"
#include "starflow/starflow.h"
#include "starflow/starflow.hpp"

struct starflow_sampler {
  starflow::Sampler sampler;
};

namespace {

thread_local std::string last_error;

template <typename Work>
starflow_status guarded(const Work& work) noexcept {
  try {
    last_error.clear();
    work();
    return STARFLOW_OK;
  } catch (const starflow::Error& error) {
    last_error = error.what();
    return static_cast<starflow_status>(error.kind());
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception of an unknown type";
  }
  return STARFLOW_INTERNAL;
}

// A structure of the caller, whose later fields are zero if it was compiled with an older header.
template <typename Structure>
Structure read(const Structure* given, const char* name) {
  Structure made{};
  if (given == nullptr) return made;
  if (given->struct_size == 0 || given->struct_size > sizeof(Structure)) {
    starflow::usage_error(std::string(name) + ": struct_size is not that of a structure this library knows");
  }
  std::memcpy(&made, given, given->struct_size);
  return made;
}

std::string text(const char* given, const char* otherwise) { return given == nullptr ? otherwise : given; }

template <typename Value>
std::vector<Value> values(const Value* given, std::size_t count) {
  if (given == nullptr && count > 0) starflow::usage_error("an array is NULL, but its number of values is not 0");
  return std::vector<Value>(given, given + count);
}

void check(bool given, const char* what) {
  if (!given) starflow::usage_error(std::string(what) + " is NULL");
}

std::size_t product(const starflow::Shape& shape) {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return count;
}

starflow::Request request_of(const starflow_request* given) {
  const starflow_request from = read(given, "request");
  starflow::Request made;
  made.labels = values(from.labels, from.label_count);
  made.condition = values(from.condition, from.condition_values);
  made.null_condition = values(from.null_condition, from.null_condition_values);
  for (const starflow_guidance& each : values(from.guidance, from.guidance_count)) {
    const std::vector<double> schedule = values(each.schedule, each.schedule_count);
    const bool always = each.start == 0 && each.end == 0;
    made.guidance.push_back({each.weight, each.top_only != 0, each.without_scale == 0, each.without_shift == 0,
                             each.annealed != 0, schedule, each.start, always ? 1 : each.end});
  }
  made.denoise = static_cast<starflow::Denoise>(from.denoise);
  if (from.denoising_rate != 0) made.denoising_rate = from.denoising_rate;
  if (from.attention_temperature != 0) made.attention_temperature = from.attention_temperature;
  if (from.progress != nullptr) {
    made.progress = [from](std::size_t done, std::size_t total) { return from.progress(from.user, done, total) == 0; };
  }
  if (from.on_block != nullptr) {
    made.on_block = [from](int block, std::size_t first, std::size_t n, const float* data) {
      from.on_block(from.user, block, first, n, data);
    };
  }
  return made;
}

}  // namespace

const char* starflow_last_error(void) { return last_error.c_str(); }

starflow_status starflow_open(const char* folder, const starflow_options* options, starflow_sampler** sampler) {
  return guarded([&] {
    check(folder != nullptr, "folder");
    check(sampler != nullptr, "sampler");
    const starflow_options from = read(options, "options");
    starflow::Options made;
    made.variant = text(from.variant, "");
    made.provider = text(from.provider, "cpu");
    made.plan = text(from.plan, "auto");
    made.onnxruntime = text(from.onnxruntime, "");
    made.backend = text(from.backend, "auto");
    made.tensorrt = text(from.tensorrt, "");
    made.height = from.height;
    made.width = from.width;
    made.batch = from.batch;
    made.threads = from.threads;
    made.verify = from.verify != 0;
    if (from.warn != nullptr) {
      made.warn = [warn = from.warn, user = from.warn_user](const std::string& message) { warn(user, message.c_str()); };
    }
    *sampler = new starflow_sampler{starflow::Sampler::open(folder, made)};
  });
}

void starflow_close(starflow_sampler* sampler) { delete sampler; }

starflow_status starflow_get_sizes(const starflow_sampler* sampler, starflow_sizes* sizes) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    check(sizes != nullptr, "sizes");
    const starflow::Description& about = sampler->sampler.description();
    const starflow::Shape& pixels = sampler->sampler.pixel_shape();
    starflow_sizes made = read(sizes, "sizes");
    made.noise_values = product(sampler->sampler.noise_shape());
    made.data_values = product(sampler->sampler.data_shape());
    made.channels = pixels.empty() ? 0 : static_cast<std::size_t>(pixels[0]);
    made.height = pixels.empty() ? 0 : static_cast<std::size_t>(pixels[1]);
    made.width = pixels.empty() ? 0 : static_cast<std::size_t>(pixels[2]);
    made.condition_tokens = static_cast<std::size_t>(about.condition_tokens);
    made.condition_width = static_cast<std::size_t>(about.condition_width);
    made.classes = static_cast<std::size_t>(about.num_classes);
    std::memcpy(sizes, &made, made.struct_size);
  });
}

starflow_status starflow_load(starflow_sampler* sampler) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    sampler->sampler.load();
  });
}

starflow_status starflow_noise(const starflow_sampler* sampler, size_t count, uint64_t seed, float temperature,
                               float* noise) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    check(noise != nullptr, "noise");
    const std::vector<float> made = sampler->sampler.noise(count, seed, temperature);
    std::copy(made.begin(), made.end(), noise);
  });
}

void starflow_normal_numbers(uint64_t seed, uint64_t image, size_t count, float* numbers) {
  starflow::normal_numbers(seed, image, count, numbers);
}

starflow_status starflow_generate(starflow_sampler* sampler, size_t count, const float* noise,
                                  const starflow_request* request, float* data) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    check(noise != nullptr, "noise");
    check(data != nullptr, "data");
    const std::size_t size = product(sampler->sampler.noise_shape());
    const std::vector<float> made = sampler->sampler.generate(values(noise, count * size), request_of(request));
    std::copy(made.begin(), made.end(), data);
  });
}

starflow_status starflow_to_images(starflow_sampler* sampler, size_t count, const float* data, starflow_denoise denoise,
                                   uint8_t* pixels) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    check(data != nullptr, "data");
    check(pixels != nullptr, "pixels");
    const std::size_t size = product(sampler->sampler.data_shape());
    const starflow::Images made =
        sampler->sampler.to_images(values(data, count * size), static_cast<starflow::Denoise>(denoise));
    std::copy(made.pixels.begin(), made.pixels.end(), pixels);
  });
}

starflow_status starflow_encode_tokens(starflow_sampler* sampler, const int64_t* ids, const int64_t* mask,
                                       size_t tokens, float* features) {
  return guarded([&] {
    check(sampler != nullptr, "sampler");
    check(features != nullptr, "features");
    const std::vector<float> made = sampler->sampler.encode_tokens(values(ids, tokens), values(mask, tokens));
    std::copy(made.begin(), made.end(), features);
  });
}
