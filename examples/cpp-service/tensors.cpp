#include "tensors.hpp"

#include <cmath>
#include <cstring>

#include "refused.hpp"

namespace {

constexpr std::size_t most_values = std::size_t{1} << 24;

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Refused(400, "input " + name + ": " + why);
}

void read_json(const std::string& name, const Json& data, Tensor& tensor) {
  for (const Json& value : data) {
    if (value.is_array()) {
      read_json(name, value, tensor);
    } else if (tensor.datatype == "BYTES" && value.is_string()) {
      tensor.text.push_back(value.get<std::string>());
    } else if (tensor.datatype == "INT64" && value.is_number_integer() &&
               (!value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX)) {
      tensor.whole.push_back(value.get<std::int64_t>());
    } else if (tensor.datatype == "FP32" && value.is_number()) {
      tensor.real.push_back(value.get<float>());
    } else {
      refuse(name, "its data are not all " + tensor.datatype);
    }
  }
}

template <typename Value>
void read_values(const std::string& name, const std::string& bytes, std::vector<Value>& values) {
  if (bytes.size() % sizeof(Value) != 0)
    refuse(name, std::to_string(bytes.size()) + " bytes are no whole number of values");
  values.resize(bytes.size() / sizeof(Value));
  std::memcpy(values.data(), bytes.data(), bytes.size());
}

void read_texts(const std::string& name, const std::string& bytes, std::vector<std::string>& texts) {
  for (std::size_t place = 0; place < bytes.size();) {
    std::uint32_t length = 0;
    if (bytes.size() - place < sizeof(length)) refuse(name, "a string is cut off");
    std::memcpy(&length, bytes.data() + place, sizeof(length));
    place += sizeof(length);
    if (bytes.size() - place < length) refuse(name, "a string is cut off");
    texts.push_back(bytes.substr(place, length));
    place += length;
  }
}

Tensor read_tensor(const std::string& name, const Json& given, const std::string& binary, std::size_t& place) {
  Tensor tensor;
  tensor.datatype = given.at("datatype").get<std::string>();
  if (tensor.datatype != "INT64" && tensor.datatype != "FP32" && tensor.datatype != "BYTES")
    refuse(name, "datatype " + tensor.datatype + " is none of INT64, FP32, BYTES");
  std::size_t expected = 1;
  for (const Json& side : given.at("shape")) {
    if (!side.is_number_unsigned() || side.get<std::uint64_t>() > most_values)
      refuse(name, "shape " + given["shape"].dump() + " is not one this server takes");
    tensor.shape.push_back(side.get<std::size_t>());
    expected *= tensor.shape.back();
    if (expected > most_values || tensor.shape.size() > 3)
      refuse(name, "shape " + given["shape"].dump() + " is not one this server takes");
  }
  const Json size = given.value("parameters", Json::object()).value("binary_data_size", Json());
  if (size.is_number_unsigned() && size.get<std::size_t>() <= binary.size() - place && !given.contains("data")) {
    const std::string bytes = binary.substr(place, size.get<std::size_t>());
    place += bytes.size();
    if (tensor.datatype == "INT64") read_values(name, bytes, tensor.whole);
    if (tensor.datatype == "FP32") read_values(name, bytes, tensor.real);
    if (tensor.datatype == "BYTES") read_texts(name, bytes, tensor.text);
  } else if (size.is_null() && given.contains("data") && given["data"].is_array()) {
    read_json(name, given["data"], tensor);
  } else {
    refuse(name, "give `data`, or `parameters.binary_data_size` with as many bytes behind the JSON");
  }
  for (const float value : tensor.real) {
    if (!std::isfinite(value)) refuse(name, "a number is not finite");
  }
  if (tensor.values() != expected)
    refuse(name, std::to_string(tensor.values()) + " values do not fill the shape " + given["shape"].dump());
  return tensor;
}

}  // namespace

std::map<std::string, Tensor> read_tensors(const Json& inputs, const std::string& binary) {
  std::map<std::string, Tensor> found;
  std::size_t place = 0;
  for (const Json& given : inputs) {
    const auto name = given.at("name").get<std::string>();
    if (!found.emplace(name, read_tensor(name, given, binary, place)).second) refuse(name, "it is given twice");
  }
  if (place != binary.size())
    throw Refused(400, std::to_string(binary.size() - place) + " bytes follow the last tensor");
  return found;
}
