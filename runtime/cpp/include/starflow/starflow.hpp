/// \file
/// Runs bundles of autoregressive and continuous flows: `docs/bundle.md` says what a bundle is.
///
///     auto sampler = starflow::Sampler::open("digits.bundle");
///     starflow::Request request;
///     request.labels = {3, 1, 4};
///     request.guidance = {starflow::Guidance{2.0}};
///     auto data = sampler.generate(sampler.noise(3, 7), request);
///     starflow::Images images = sampler.to_images(data);
///
/// Every function that can fail throws `starflow::Error`, whose message is one line, and leaves its sampler as it was.
/// Arrays are float32 in row-major order, the images one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(_WIN32)
#define STARFLOW_API
#else
#define STARFLOW_API __attribute__((visibility("default")))
#endif

namespace starflow {

/// What kind of error it is, and so who can mend it.
enum class ErrorKind {
  usage = 1,      ///< the request is wrong: an unknown label, a shape that does not fit
  bundle = 2,     ///< the bundle is damaged, foreign, newer, or lacks what was asked for
  backend = 3,    ///< the backend cannot run here, a value is not finite, or an integration diverged
  cancelled = 4,  ///< a callback asked to stop
};

/// The one type of exception. `what()` is one line: what was found, where, what was expected, and what mends it.
class STARFLOW_API Error : public std::runtime_error {
 public:
  /// An error of a kind, with a message of one line.
  Error(ErrorKind kind, const std::string& message);
  /// Who can mend it.
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

/// Sizes of an array of one image, such as [C, H, W], without the number of images.
using Shape = std::vector<std::int64_t>;

/// How a bundle is opened.
struct Options {
  std::string variant;           ///< its name; empty takes the first one for the backend
  std::string backend = "auto";  ///< `onnxruntime`, `tensorrt`, or `auto`: TensorRT if there are engines for this GPU
  std::string provider = "cpu";  ///< execution provider of ONNX Runtime: `cpu`, `cuda` or `tensorrt`
  std::string plan =
      "auto";  ///< `auto` takes the plan that the bundle has for this variant, `sequential` none; `student` and
               ///< `student+N` make flow blocks by their students, before N passes, the others as `auto`; else a file
  std::string onnxruntime;  ///< ONNX Runtime's library; empty looks for it, see `docs/cpp.md`
  std::string tensorrt;     ///< TensorRT's library; empty looks for it
  std::int64_t height = 0;  ///< of the data, for bundles of several shapes; 0 takes the default shape
  std::int64_t width = 0;   ///< of the data
  std::int64_t batch = 0;   ///< the one batch size to run; 0 takes the smallest that holds the images, part by part
  int threads = 0;          ///< within an operator; 0 measures for each flow block whether one or all cores are faster
  bool verify = false;      ///< whether to compare every file with its digest first
  /// Called with a line about what works less well than it should, such as a run that no CUDA graph can hold; empty
  /// writes it to stderr.
  std::function<void(const std::string& message)> warn;
};

/// Classifier-free guidance. STARFlow takes `weight`, `top_only` and `schedule`; TARFlow also `scale`, `shift` and
/// `annealed`, but not `top_only`; a continuous flow takes `weight`, `start` and `end`.
struct Guidance {
  double weight = 0;             ///< w >= 0; 0 is no guidance
  bool top_only = false;         ///< whether to guide the deep block alone
  bool scale = true;             ///< whether to guide the scale
  bool shift = true;             ///< whether to guide the shift
  bool annealed = false;         ///< whether the weight grows linearly over the sequence
  std::vector<double> schedule;  ///< factors >= 0 of the weight, one for each flow block from block 0; empty means 1
  double start = 0, end = 1;     ///< times between which it applies: in a step that starts at t, start <= t < end
};

/// How the noise that training added to the data is removed.
enum class Denoise { automatic = 0, none = 1, score = 2, learned = 3, decoder = 4 };

/// What to sample. A list of one element is for all images, any other has one element for each.
struct Request {
  std::vector<std::int64_t> labels;      ///< classes [N or 1], 0 to num_classes - 1; empty is the null class
  std::vector<float> condition;          ///< condition tokens [N or 1, m, width], for models of features
  std::vector<float> null_condition;     ///< null condition tokens [N or 1, m, width], which guidance of features needs
  std::vector<Guidance> guidance;        ///< empty is no guidance
  double attention_temperature = 1;      ///< > 0; other than 1 only for bundles that take one
  Denoise denoise = Denoise::automatic;  ///< how the noise that training added to the data is removed
  double denoising_rate = 1;             ///< fraction >= 0 of the denoising step that `score` and `learned` take

  /// Called with the work done and the work in total; false cancels. At most 16 tokens or passes lie between two calls.
  std::function<bool(std::size_t done, std::size_t total)> progress;
  /// Called after each flow block with its index and its output [n, *data_shape], batch by batch; `first` is the number
  /// of the batch's first image. Valid during the call.
  std::function<void(int block, std::size_t first, std::size_t n, const float* data)> on_block;
};

/// Pixels of N images, [N, height, width, channels].
struct Images {
  std::size_t count = 0, height = 0, width = 0, channels = 0;  ///< N, sides in pixels, and 1 or 3 channels
  std::vector<std::uint8_t> pixels;                            ///< [N, height, width, channels], 0 to 255
};

/// What a bundle says about itself.
struct Description {
  std::string family;                    ///< `starflow`, `tarflow` or `continuous-flow`
  std::string variant;                   ///< the variant in use
  std::string conditioning;              ///< `none`, `class-token`, `class-label` or `features`
  std::vector<std::string> class_names;  ///< in the order of their labels; empty if the bundle names none
  std::int64_t num_classes = 0;          ///< 0 if it takes no labels
  std::int64_t condition_tokens = 0, condition_width = 0;  ///< m and width of condition tokens; 0 if it takes none
  std::vector<std::int64_t> batch_sizes;                   ///< [number of sizes], the largest first
  bool guided = false;                                     ///< whether it takes a guidance weight
  bool makes_images = false;                               ///< whether `to_images` works
  std::string backend;                                     ///< what runs it, such as `onnxruntime cpu` or `tensorrt`
  std::string release;                                     ///< of ONNX Runtime or TensorRT
};

/// An open bundle. One thread may use a sampler at a time; several samplers run at the same time.
class STARFLOW_API Sampler {
 public:
  /// Opens a bundle's folder: reads and checks the manifest, and that every file is there and has its size.
  static Sampler open(const std::string& folder, const Options& options = {});
  Sampler(Sampler&& other) noexcept;
  Sampler& operator=(Sampler&& other) noexcept;
  ~Sampler();

  /// What the bundle says about itself; valid as long as the sampler.
  const Description& description() const;
  const Shape& noise_shape() const;  ///< of one image's noise: [C, H, W], [T, D], or [D] for points
  const Shape& data_shape() const;   ///< of one image's data
  const Shape& pixel_shape() const;  ///< [C, H, W] of one image; empty if the bundle makes no images

  /// Loads every graph of the largest batch size now, not when it is first needed.
  void load();

  /// Normal noise [count, *noise_shape] of standard deviation `temperature` > 0. Image i depends on the seed and i
  /// alone.
  std::vector<float> noise(std::size_t count, std::uint64_t seed, float temperature = 1) const;
  /// The same [seeds.size(), *noise_shape] with a seed for each image, which then depends on it alone.
  std::vector<float> noise(const std::vector<std::uint64_t>& seeds, float temperature = 1) const;

  /// Turns noise [N, *noise_shape] into data [N, *data_shape], deterministically. N may be any number.
  std::vector<float> generate(const std::vector<float>& noise, const Request& request = {});

  /// Turns data [N, *data_shape] into pixels; latents go through the decoder.
  Images to_images(const std::vector<float>& data, Denoise denoise = Denoise::automatic);

  /// Condition tokens [m, width] of the ids and the mask [text tokens] that the bundle's `tokenizer.json` makes of a
  /// text.
  std::vector<float> encode_tokens(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& mask);

 private:
  struct Open;
  explicit Sampler(std::unique_ptr<Open> open);
  std::unique_ptr<Open> open_;
};

/// Fills numbers [count] with the first standard normal numbers of an image of a seed: "The noise of a seed" in
/// `docs/bundle.md`.
STARFLOW_API void normal_numbers(std::uint64_t seed, std::uint64_t image, std::size_t count, float* numbers);

}  // namespace starflow
