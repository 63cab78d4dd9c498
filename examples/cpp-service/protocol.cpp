#include "protocol.hpp"

#include <algorithm>
#include <random>

#include "refused.hpp"

namespace {

constexpr std::size_t most_json = std::size_t{2} << 20;  // bytes; larger tensors come as bytes
constexpr double most_guidance = 1000;

Json spec(const std::string& name, const std::string& datatype, const Json& shape) {
  return {{"name", name}, {"datatype", datatype}, {"shape", shape}};
}

std::vector<std::size_t> image_shape(const starflow::Sampler& sampler, std::size_t count) {
  const starflow::Shape& shape = sampler.pixel_shape();
  return {count, static_cast<std::size_t>(shape[1]), static_cast<std::size_t>(shape[2]),
          static_cast<std::size_t>(shape[0])};
}

const Tensor* find(const std::map<std::string, Tensor>& tensors, const std::string& name, const std::string& datatype) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return nullptr;
  if (found->second.datatype != datatype) throw Refused(400, "input " + name + ": give " + datatype);
  return &found->second;
}

// One value for each image; one value is for all of them.
template <typename Value>
std::vector<Value> each(const std::string& name, const std::vector<Value>& given, std::size_t count) {
  if (given.size() == 1) return std::vector<Value>(count, given[0]);
  if (given.size() != count)
    throw Refused(400, "input " + name + ": " + std::to_string(given.size()) + " values for " + std::to_string(count) +
                           " images");
  return given;
}

std::vector<std::int64_t> labels_of(const Tensor& tensor, const starflow::Description& about) {
  std::vector<std::int64_t> labels = tensor.whole;
  for (const std::string& name : tensor.text) {
    const auto found = std::find(about.class_names.begin(), about.class_names.end(), name);
    if (found == about.class_names.end()) throw Refused(400, "input label: there is no class " + name);
    labels.push_back(found - about.class_names.begin());
  }
  for (const std::int64_t label : labels) {
    if (label < 0 || label >= about.num_classes)
      throw Refused(400, "input label: " + std::to_string(label) + " is no class; give 0 to " +
                             std::to_string(about.num_classes - 1));
  }
  return labels;
}

std::vector<std::uint64_t> seeds_of(const Tensor* tensor, std::size_t count) {
  std::vector<std::uint64_t> seeds;
  if (tensor == nullptr) {
    const std::uint64_t first = std::random_device()();
    for (std::size_t image = 0; image < count; ++image) seeds.push_back(first + image);
    return seeds;
  }
  for (const std::int64_t seed : each("seed", tensor->whole, count)) {
    if (seed < 0) throw Refused(400, "input seed: " + std::to_string(seed) + " is negative");
    seeds.push_back(static_cast<std::uint64_t>(seed));
  }
  return seeds;
}

Order order_of(const starflow::Sampler& sampler, const std::map<std::string, Tensor>& tensors, std::size_t most) {
  const starflow::Description& about = sampler.description();
  const Json takes = described("", sampler)["inputs"];
  for (const auto& [name, tensor] : tensors) {
    const auto named = [&given = name](const Json& input) { return input["name"] == given; };
    if (std::none_of(takes.begin(), takes.end(), named)) {
      std::string names;
      for (const Json& input : takes) names += (names.empty() ? "" : ", ") + input["name"].get<std::string>();
      throw Refused(400, "input " + name + ": this model takes " + names);
    }
    if (name == "temperature") continue;
    const std::size_t sides = name == "condition" ? 3 : 1;
    const bool column = sides == 1 && tensor.shape.size() == 2 && tensor.shape[1] == 1;  // as Triton's clients send it
    if (tensor.shape.empty() || tensor.shape[0] == 0 || (tensor.shape.size() != sides && !column))
      throw Refused(400, "input " + name + ": its shape has one value for each image");
  }
  std::size_t count = 1;
  for (const char* name : {"label", "condition", "seed", "guidance"}) {
    const auto found = tensors.find(name);
    if (found != tensors.end()) count = std::max(count, found->second.shape[0]);
  }
  if (count > most)
    throw Refused(400, std::to_string(count) + " images in one request; ask for at most " + std::to_string(most));
  Order order;
  order.seeds = seeds_of(find(tensors, "seed", "INT64"), count);
  if (const auto label = tensors.find("label"); label != tensors.end()) {
    if (label->second.datatype == "FP32") throw Refused(400, "input label: give INT64, or BYTES for names");
    order.labels = each("label", labels_of(label->second, about), count);
  }
  if (const Tensor* condition = find(tensors, "condition", "FP32")) {
    const std::size_t size = static_cast<std::size_t>(about.condition_tokens * about.condition_width);
    if (condition->shape[1] != static_cast<std::size_t>(about.condition_tokens) || condition->real.size() % size != 0 ||
        (condition->shape[0] != 1 && condition->shape[0] != count))
      throw Refused(400, "input condition: its shape is not that of " + std::to_string(count) + " images");
    for (std::size_t image = 0; image < (condition->shape[0] == 1 ? count : 1); ++image)
      order.condition.insert(order.condition.end(), condition->real.begin(), condition->real.end());
  }
  const Tensor* guidance = find(tensors, "guidance", "FP32");
  const std::vector<float> weights =
      guidance == nullptr ? std::vector<float>(count, 0.0F) : each("guidance", guidance->real, count);
  for (const float weight : weights) {
    if (!(weight >= 0 && weight <= most_guidance))
      throw Refused(400, "input guidance: " + std::to_string(weight) + " is not a number from 0 to 1000");
    order.guidance.push_back(weight);
  }
  if (const Tensor* temperature = find(tensors, "temperature", "FP32")) {
    if (temperature->real.size() != 1 || !(temperature->real[0] > 0))
      throw Refused(400, "input temperature: give one number > 0");
    order.temperature = temperature->real[0];
  }
  return order;
}

bool flag(const Json& object, const char* name, bool otherwise) {
  const Json parameters = object.value("parameters", Json::object());
  return parameters.value(name, Json(otherwise)) == Json(true);
}

}  // namespace

Json described(const std::string& name, const starflow::Sampler& sampler) {
  const starflow::Description& about = sampler.description();
  Json inputs = Json::array(), outputs = Json::array();
  if (about.num_classes > 0) inputs.push_back(spec("label", "INT64", {-1}));
  if (about.conditioning == "features")
    inputs.push_back(spec("condition", "FP32", {-1, about.condition_tokens, about.condition_width}));
  inputs.push_back(spec("seed", "INT64", {-1}));
  inputs.push_back(spec("guidance", "FP32", {-1}));
  inputs.push_back(spec("temperature", "FP32", {1}));
  const starflow::Shape &pixels = sampler.pixel_shape(), &data = sampler.data_shape();
  if (!pixels.empty()) outputs.push_back(spec("image", "UINT8", {-1, pixels[1], pixels[2], pixels[0]}));
  Json latent = {-1};
  for (const std::int64_t side : data) latent.push_back(side);
  outputs.push_back(spec("latent", "FP32", latent));
  return {{"name", name}, {"versions", {"1"}}, {"platform", "starflow"}, {"inputs", inputs}, {"outputs", outputs}};
}

Asked read_request(const starflow::Sampler& sampler, std::size_t most_images, const std::string& body,
                   const std::optional<std::string>& json_length) {
  std::size_t length = body.size();
  if (json_length) {
    const bool digits = !json_length->empty() && json_length->size() < 12 &&
                        json_length->find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoull(*json_length) > body.size())
      throw Refused(400, std::string(json_length_header) + ": the body has " + std::to_string(body.size()) + " bytes");
    length = std::stoull(*json_length);
  }
  if (length > most_json)
    throw Refused(413, "the JSON is larger than " + std::to_string(most_json) + " bytes; send large tensors as bytes");
  try {
    const Json given = Json::parse(body.substr(0, length));
    if (!given.is_object()) throw Refused(400, "the request is JSON, but no object");
    Asked asked;
    asked.order = order_of(sampler, read_tensors(given.at("inputs"), body.substr(length)), most_images);
    asked.id = given.value("id", Json());
    if (!asked.id.is_null() && !asked.id.is_string()) throw Refused(400, "id: give a string");
    const bool makes_images = !sampler.pixel_shape().empty();
    const Json wanted = given.value("outputs", Json::array());
    if (wanted.size() > 1) throw Refused(400, "outputs: ask for one");
    const std::string output =
        wanted.empty() ? (makes_images ? "image" : "latent") : wanted.at(0).at("name").get<std::string>();
    if (output != "latent" && !(output == "image" && makes_images))
      throw Refused(400, "output " + output + ": this model makes " + (makes_images ? "image, latent" : "latent"));
    asked.order.latents = output == "latent";
    asked.as_bytes = flag(given, "binary_data_output", false);
    if (!wanted.empty()) asked.as_bytes = flag(wanted[0], "binary_data", asked.as_bytes);
    return asked;
  } catch (const Json::exception& error) {
    throw Refused(400, std::string("the request cannot be read (") + error.what() + ")");
  }
}

Answer write_answer(const std::string& name, const starflow::Sampler& sampler, const Asked& asked,
                    const Ticket& ticket) {
  std::string bytes;
  Json output;
  const std::size_t count = ticket.order.count();
  if (ticket.order.latents) {
    std::vector<std::size_t> shape{count};
    for (const std::int64_t side : sampler.data_shape()) shape.push_back(static_cast<std::size_t>(side));
    output = write_tensor("latent", "FP32", shape, ticket.data, asked.as_bytes, bytes);
  } else {
    output = write_tensor("image", "UINT8", image_shape(sampler, count), ticket.pixels, asked.as_bytes, bytes);
  }
  Json made{{"model_name", name}, {"model_version", "1"}, {"outputs", {output}}};
  if (!asked.id.is_null()) made["id"] = asked.id;
  Answer answer{made.dump(-1, ' ', false, Json::error_handler_t::replace), 0};
  if (asked.as_bytes) {
    answer.json_length = answer.body.size();
    answer.body += bytes;
  }
  return answer;
}
