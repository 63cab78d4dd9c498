// JSON texts, and what does not fit in one.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace starflow {

using Json = nlohmann::json;

// What does not fit in a JSON text; `what()` begins with the field.
class Misfit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Parses a text; Misfit if it is not JSON, is nested deeply, or has whole numbers beyond +-2^62.
Json parse_json(const std::string& text);

// A value in a message.
std::string shown(const Json& value);

}  // namespace starflow
