// Tensors of the Open Inference Protocol v2, as JSON and as bytes behind it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

using Json = nlohmann::json;

// One that a client sends. `whole`, `real` or `text` holds its values, as its datatype says: INT64, FP32 or BYTES.
struct Tensor {
  std::string datatype;
  std::vector<std::size_t> shape;
  std::vector<std::int64_t> whole;
  std::vector<float> real;
  std::vector<std::string> text;

  std::size_t values() const { return whole.size() + real.size() + text.size(); }
};

// The tensors of a request by name; `binary` is what follows its JSON. Throws Refused, or an error of the JSON library.
std::map<std::string, Tensor> read_tensors(const Json& inputs, const std::string& binary);

// The JSON of an output; if it is asked for as bytes, they are added to `binary`.
template <typename Value>
Json write_tensor(const std::string& name, const std::string& datatype, const std::vector<std::size_t>& shape,
                  const std::vector<Value>& values, bool as_bytes, std::string& binary) {
  Json written{{"name", name}, {"shape", shape}, {"datatype", datatype}};
  if (as_bytes) {
    written["parameters"]["binary_data_size"] = values.size() * sizeof(Value);
    binary.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Value));
  } else {
    written["data"] = values;
  }
  return written;
}
