// An open bundle that samples images.
#include <algorithm>
#include <cmath>
#include <new>

#include "batches.hpp"
#include "bundle/bundle.hpp"
#include "family.hpp"
#include "networks/side_networks.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

std::size_t product(const Shape& shape) {
  std::size_t values = 1;
  for (const std::int64_t size : shape) values *= static_cast<std::size_t>(size);
  return values;
}

std::string shown(const Shape& shape) {
  std::string text = "[N";
  for (const std::int64_t size : shape) text += ", " + std::to_string(size);
  return text + "]";
}

// The number of images of an array of theirs.
std::size_t count_of(const std::vector<float>& values, const Shape& shape, const std::string& what) {
  const std::size_t size = product(shape);
  if (values.empty() || values.size() % size != 0)
    usage_error(what + " has " + std::to_string(values.size()) + " values; this bundle takes float32 " + shown(shape));
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
    usage_error(what + " holds NaN or infinite values");
  return values.size() / size;
}

const Variant& choose_variant(const Manifest& manifest, const std::string& name, const std::string& lowering) {
  std::string names;
  for (const Variant& variant : manifest.variants) {
    if (name.empty() ? variant.lowering == lowering : variant.name == name) return variant;
    names += (names.empty() ? "" : ", ") + variant.name;
  }
  bundle_error("the bundle has no " + (name.empty() ? lowering + " variant" : "variant " + name) + "; it has " + names);
}

void check_guidance(const std::vector<Guidance>& guidance, std::size_t count) {
  const auto is_weight = [](double value) { return std::isfinite(value) && value >= 0; };
  for (const Guidance& each : guidance) {
    if (!is_weight(each.weight))
      usage_error("guidance " + std::to_string(each.weight) +
                  " is not a weight; give a number >= 0 (0 samples without guidance)");
    if (!std::all_of(each.schedule.begin(), each.schedule.end(), is_weight))
      usage_error("guidance schedule: give factors >= 0 of the weight");
    if (!(each.start >= 0 && each.start < each.end && each.end <= 1))
      usage_error("guidance interval: give two times from 0 (noise) to 1 (data), the first before the second");
  }
  if (guidance.size() > 1 && guidance.size() != count) {
    usage_error(std::to_string(guidance.size()) + " guidance weights for " + std::to_string(count) +
                " images; give one for all images, or one for each");
  }
}

// Runs `work`; what the standard library throws where memory does not suffice becomes an error of ours.
template <typename Work>
auto within_memory(const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    backend_error("memory does not suffice; sample fewer images at a time, or a smaller batch size");
  } catch (const std::length_error&) {
    backend_error("memory does not suffice; sample fewer images at a time, or a smaller batch size");
  }
}

}  // namespace

struct Sampler::Open {
  Open(const std::string& folder, const Options& options)
      : bundle(folder),
        manifests(bundle.at(options.height, options.width, options.batch)),
        backend(open_backend(bundle, manifests, options)),
        variant(choose_variant(manifests[0], backend->variant().empty() ? options.variant : backend->variant(),
                               backend->lowering())),
        beside(manifests, variant, *backend),
        loops(manifests.size()),
        plan(options.plan) {
    const Manifest& manifest = manifests[0];
    if (options.verify) bundle.verify();
    backend->check(variant);
    for (const Manifest& each : manifests) description.batch_sizes.push_back(each.batch);
    description.family = manifest.model.family;
    description.variant = variant.name;
    description.conditioning = manifest.conditioning.kind;
    description.class_names = manifest.conditioning.class_names;
    description.num_classes = manifest.conditioning.num_classes;
    description.condition_tokens = manifest.conditioning.tokens;
    description.condition_width = manifest.conditioning.width;
    description.guided = manifest.guided;
    description.makes_images = manifest.makes_images();
    description.backend = backend->name();
    description.release = backend->release();
    noise_shape = manifest.noise_shape();
    data_shape = manifest.model.data_shape;
    pixel_shape = manifest.pixel_shape();
    for (std::size_t size = 0; size < manifests.size(); ++size) loop(size);  // a plan that does not fit is refused now
  }

  // The loop of a batch size. It opens its graphs when it first runs.
  FamilyLoop& loop(std::size_t size) {
    if (!loops[size]) {
      const Manifest& manifest = manifests[size];
      const Variant& own = choose_variant(manifest, variant.name, "");
      loops[size] = manifest.is_continuous() ? open_continuous(manifest, own, *backend, plan)
                                             : open_autoregressive(bundle, manifest, own, *backend, plan);
    }
    return *loops[size];
  }

  std::vector<float> generate(const std::vector<float>& noise, const Request& request);

  Bundle bundle;
  std::vector<Manifest> manifests;
  std::unique_ptr<Backend> backend;
  const Variant& variant;
  SideNetworks beside;
  std::vector<std::unique_ptr<FamilyLoop>> loops;
  std::string plan;
  Description description;
  Shape noise_shape, data_shape, pixel_shape;
  bool busy = false;
};

std::vector<float> Sampler::Open::generate(const std::vector<float>& noise, const Request& request) {
  const std::size_t count = count_of(noise, noise_shape, "noise"), noise_size = product(noise_shape),
                    data_size = product(data_shape);
  check_guidance(request.guidance, count);
  if (!(std::isfinite(request.attention_temperature) && request.attention_temperature > 0))
    usage_error("attention temperature " + std::to_string(request.attention_temperature) + ": give a number > 0");
  if (!(std::isfinite(request.denoising_rate) && request.denoising_rate >= 0))
    usage_error("denoising rate " + std::to_string(request.denoising_rate) + ": give a number >= 0");
  loop(0).check(request);
  const Denoise how = choose_denoising(manifests[0], request.denoise);
  const bool guided = std::any_of(request.guidance.begin(), request.guidance.end(),
                                  [](const Guidance& each) { return each.weight > 0; });
  const Conditions conditions(manifests[0].conditioning, count, request, guided);
  const std::vector<BatchOfImages> parts = batches(count, description.batch_sizes);
  const std::size_t total = parts.size() * loop(0).work();
  std::size_t done = 0;
  const auto on_work = [&](std::size_t work) {
    done += work;
    if (request.progress && !request.progress(done, total)) throw Error(ErrorKind::cancelled, "sampling was cancelled");
  };
  std::vector<float> data(count * data_size);
  for (const BatchOfImages& part : parts) {
    Batch batch{{}, conditions.of(part.index), {}, part.first, part.count};
    for (const std::size_t image : part.index) {
      batch.noise.insert(batch.noise.end(), noise.begin() + static_cast<std::ptrdiff_t>(image * noise_size),
                         noise.begin() + static_cast<std::ptrdiff_t>((image + 1) * noise_size));
      batch.guidance.push_back(request.guidance.empty() ? Guidance()
                                                        : request.guidance[request.guidance.size() == 1 ? 0 : image]);
    }
    const std::vector<float> x = loop(part.size_index).run(batch, request, on_work);
    std::copy_n(x.begin(), part.count * data_size, data.begin() + static_cast<std::ptrdiff_t>(part.first * data_size));
  }
  if (how == Denoise::score || how == Denoise::learned) beside.denoise(data, conditions, how, request.denoising_rate);
  return data;
}

Sampler::Sampler(std::unique_ptr<Open> open) : open_(std::move(open)) {}
Sampler::Sampler(Sampler&& other) noexcept = default;
Sampler& Sampler::operator=(Sampler&& other) noexcept = default;
Sampler::~Sampler() = default;

Sampler Sampler::open(const std::string& folder, const Options& options) {
  return within_memory([&] { return Sampler(std::make_unique<Open>(folder, options)); });
}

const Description& Sampler::description() const { return open_->description; }
const Shape& Sampler::noise_shape() const { return open_->noise_shape; }
const Shape& Sampler::data_shape() const { return open_->data_shape; }
const Shape& Sampler::pixel_shape() const { return open_->pixel_shape; }

void Sampler::load() {
  within_memory([this] { open_->loop(0).load(); });
}

std::vector<float> Sampler::noise(std::size_t count, std::uint64_t seed, float temperature) const {
  if (count < 1) usage_error("0 images: give at least one image");
  if (!(std::isfinite(temperature) && temperature > 0))
    usage_error("temperature " + std::to_string(temperature) + " is not a factor of the noise; give a number > 0");
  return within_memory([&] {
    const std::size_t size = product(open_->noise_shape);
    if (count > SIZE_MAX / sizeof(float) / size) throw std::bad_alloc();
    std::vector<float> noise(count * size);
    for (std::size_t image = 0; image < count; ++image) normal_numbers(seed, image, size, noise.data() + image * size);
    for (float& value : noise) value *= temperature;
    return noise;
  });
}

std::vector<float> Sampler::noise(const std::vector<std::uint64_t>& seeds, float temperature) const {
  if (seeds.empty()) usage_error("0 images: give at least one seed");
  return within_memory([&] {
    std::vector<float> noise;
    for (const std::uint64_t seed : seeds) {
      const std::vector<float> one = this->noise(1, seed, temperature);
      noise.insert(noise.end(), one.begin(), one.end());
    }
    return noise;
  });
}

std::vector<float> Sampler::generate(const std::vector<float>& noise, const Request& request) {
  if (open_->busy)
    usage_error(
        "this sampler is in the midst of a call; return false from `progress` to cancel it, and open another sampler "
        "to sample meanwhile");
  struct Busy {
    explicit Busy(bool& flag) : flag_(flag) { flag_ = true; }
    ~Busy() { flag_ = false; }
    bool& flag_;
  } const busy(open_->busy);
  return within_memory([&] { return open_->generate(noise, request); });
}

Images Sampler::to_images(const std::vector<float>& data, Denoise denoise) {
  const Manifest& manifest = open_->manifests[0];
  if (!manifest.makes_images()) usage_error("this bundle makes no images; generate() returns what it makes");
  const Denoise how = choose_denoising(manifest, denoise);
  const std::size_t count = count_of(data, open_->data_shape, "data");
  return within_memory([&] {
    std::vector<float> values;
    if (manifest.autoencoder) {
      values = open_->beside.decode(data, how == Denoise::decoder);
    } else {
      values = data;
      for (float& value : values)
        value = value / static_cast<float>(manifest.scale) + static_cast<float>(manifest.shift);
    }
    const Shape& shape = open_->pixel_shape;
    Images images{count,
                  static_cast<std::size_t>(shape[1]),
                  static_cast<std::size_t>(shape[2]),
                  static_cast<std::size_t>(shape[0]),
                  {}};
    images.pixels.resize(values.size());
    const std::size_t area = images.height * images.width, channels = images.channels;
    for (std::size_t index = 0; index < values.size(); ++index) {
      const std::size_t image = index / (area * channels), channel = index / area % channels, place = index % area;
      const float level = std::min(std::max(std::rint((values[index] + 1.0F) * 127.5F), 0.0F), 255.0F);
      images.pixels[(image * area + place) * channels + channel] = static_cast<std::uint8_t>(level);
    }
    return images;
  });
}

std::vector<float> Sampler::encode_tokens(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& mask) {
  return within_memory([&] { return open_->beside.encode(ids, mask); });
}

}  // namespace starflow
