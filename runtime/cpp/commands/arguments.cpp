#include "arguments.hpp"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <map>

const char* const help_text =
    "Sample images from a bundle.\n"
    "\n"
    "Usage: starflow-run BUNDLE [options]\n"
    "\n"
    "What to sample:\n"
    "  --labels L,..         classes, such as 3,1,4 or 0-9\n"
    "  --condition F.npy     condition tokens, float32 [N or 1, m, width]\n"
    "  --null-condition F    null condition tokens, which guidance of --condition needs\n"
    "  --count N             number of images (default: one for each label, condition or seed)\n"
    "  --guidance W,..       guidance weight >= 0, one for all images or one for each (default: 0, none)\n"
    "  --seed S              image i depends on the seed and on i only (default: 0)\n"
    "  --seeds S,..          a seed for each image\n"
    "  --noise F.npy         noise of the images instead of a seed\n"
    "  --temperature T       standard deviation of the noise (default: 1)\n"
    "  --denoise HOW         auto, none, score, learned or decoder (default: auto)\n"
    "  --denoising-rate R    how far `score` and `learned` go, from 0 to 1 (default: 1)\n"
    "\n"
    "Output:\n"
    "  --out FILE.png        all images on one sheet (default: samples.png)\n"
    "  --columns N           images in a row (default: nearly a square)\n"
    "  --latents FILE.npy    also write the data, float32 [N, C, H, W]\n"
    "  --json                print a summary as JSON\n"
    "\n"
    "How it runs:\n"
    "  --variant NAME        variant of the bundle (default: the first one for this backend)\n"
    "  --plan PLAN           auto, sequential, student, student+N, or a file (default: auto)\n"
    "  --shape HxW           height and width of the data\n"
    "  --batch N             run one batch size only\n"
    "  --threads N           threads within an operator (default: 0, whatever is faster)\n"
    "  --backend NAME        auto, onnxruntime or tensorrt (default: auto)\n"
    "  --provider NAME       ONNX Runtime's execution provider: cpu, cuda or tensorrt (default: cpu)\n"
    "  --onnxruntime FILE    ONNX Runtime's library\n"
    "  --tensorrt FILE       TensorRT's library\n"
    "  --verify              compare every file with its digest first\n"
    "  --bench N             sample N more times and print the time of a batch and of a token\n";

namespace {

constexpr std::size_t most_values = 1'000'000;

[[noreturn]] void refuse(const std::string& message) {
  throw starflow::Error(starflow::ErrorKind::usage, message + "; starflow-run --help lists the options");
}

std::uint64_t whole(const std::string& name, const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const std::uint64_t value = std::strtoull(text.c_str(), &end, 10);
  if (text.find_first_not_of("0123456789") != std::string::npos || text.empty() || errno != 0)
    refuse(name + " " + text + ": give a whole number");
  return value;
}

double number(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') refuse(name + " " + text + ": give a number");
  return value;
}

std::vector<std::string> parts(const std::string& text) {
  std::vector<std::string> found;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t comma = std::min(text.find(',', start), text.size());
    found.push_back(text.substr(start, comma - start));
    start = comma + 1;
  }
  return found;
}

std::vector<std::int64_t> labels(const std::string& text) {
  constexpr std::uint64_t most = 1'000'000;
  std::vector<std::int64_t> found;
  for (const std::string& part : parts(text)) {
    const std::size_t dash = part.find('-');
    const std::uint64_t first = whole("--labels", part.substr(0, dash));
    const std::uint64_t last = dash == std::string::npos ? first : whole("--labels", part.substr(dash + 1));
    if (last < first || last > most || found.size() > most_values)
      refuse("--labels " + part + ": give a label, or a range such as 0-9");
    for (std::uint64_t label = first; label <= last; ++label) found.push_back(static_cast<std::int64_t>(label));
  }
  return found;
}

starflow::Denoise denoise(const std::string& text) {
  const std::map<std::string, starflow::Denoise> known{{"auto", starflow::Denoise::automatic},
                                                       {"none", starflow::Denoise::none},
                                                       {"score", starflow::Denoise::score},
                                                       {"learned", starflow::Denoise::learned},
                                                       {"decoder", starflow::Denoise::decoder}};
  if (known.count(text) == 0) refuse("--denoise " + text + ": choose auto, none, score, learned or decoder");
  return known.at(text);
}

}  // namespace

Arguments parse(int count, char** values) {
  Arguments made;
  using Take = std::function<void(const std::string& name, const std::string& text)>;
  const std::map<std::string, Take> options{
      {"--labels", [&](auto&, auto& text) { made.labels = labels(text); }},
      {"--condition", [&](auto&, auto& text) { made.condition = text; }},
      {"--null-condition", [&](auto&, auto& text) { made.null_condition = text; }},
      {"--count", [&](auto& name, auto& text) { made.count = whole(name, text); }},
      {"--guidance",
       [&](auto& name, auto& text) {
         for (const std::string& part : parts(text)) made.guidance.push_back(number(name, part));
       }},
      {"--seed", [&](auto& name, auto& text) { made.seeds = {whole(name, text)}; }},
      {"--seeds",
       [&](auto& name, auto& text) {
         made.seeds.clear();
         for (const std::string& part : parts(text)) made.seeds.push_back(whole(name, part));
         if (made.seeds.size() == 1) refuse("--seeds: give two or more, or --seed");
       }},
      {"--noise", [&](auto&, auto& text) { made.noise = text; }},
      {"--temperature", [&](auto& name, auto& text) { made.temperature = static_cast<float>(number(name, text)); }},
      {"--denoise", [&](auto&, auto& text) { made.denoise = denoise(text); }},
      {"--denoising-rate", [&](auto& name, auto& text) { made.denoising_rate = number(name, text); }},
      {"--out", [&](auto&, auto& text) { made.out = text; }},
      {"--columns", [&](auto& name, auto& text) { made.columns = whole(name, text); }},
      {"--latents", [&](auto&, auto& text) { made.latents = text; }},
      {"--variant", [&](auto&, auto& text) { made.options.variant = text; }},
      {"--plan", [&](auto&, auto& text) { made.options.plan = text; }},
      {"--batch", [&](auto& name, auto& text) { made.options.batch = static_cast<std::int64_t>(whole(name, text)); }},
      {"--threads",
       [&](auto& name, auto& text) {
         made.options.threads = static_cast<int>(std::min<std::uint64_t>(whole(name, text), 1 << 20));
       }},
      {"--backend", [&](auto&, auto& text) { made.options.backend = text; }},
      {"--provider", [&](auto&, auto& text) { made.options.provider = text; }},
      {"--tensorrt", [&](auto&, auto& text) { made.options.tensorrt = text; }},
      {"--onnxruntime", [&](auto&, auto& text) { made.options.onnxruntime = text; }},
      {"--bench", [&](auto& name, auto& text) { made.bench = whole(name, text); }},
      {"--shape", [&](auto& name, auto& text) {
         const std::size_t by = text.find('x');
         if (by == std::string::npos) refuse(name + " " + text + ": give HEIGHTxWIDTH");
         made.options.height = static_cast<std::int64_t>(whole(name, text.substr(0, by)));
         made.options.width = static_cast<std::int64_t>(whole(name, text.substr(by + 1)));
       }}};
  for (int index = 1; index < count; ++index) {
    const std::string name = values[index];
    if (name == "--json") {
      made.json = true;
    } else if (name == "--verify") {
      made.options.verify = true;
    } else if (name == "--help" || name == "-h") {
      made.help = true;
    } else if (options.count(name) > 0) {
      if (index + 1 == count) refuse(name + " needs a value");
      options.at(name)(name, std::string(values[++index]));
    } else if (name.rfind('-', 0) == 0 || !made.bundle.empty()) {
      refuse("unknown argument " + name);
    } else {
      made.bundle = name;
    }
  }
  if (made.bundle.empty() && !made.help) refuse("name a bundle");
  return made;
}
