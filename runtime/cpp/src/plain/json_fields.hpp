// Strict reading of JSON objects: every field has its type and range, none is missing, and none is unknown.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace starflow {

using Json = nlohmann::json;

// What does not fit in a JSON text; `what()` begins with the field.
class Misfit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Parses a text; Misfit if it is not JSON.
Json parse_json(const std::string& text);

// The fields of an object. The destructor does not look for unknown ones, `done` does.
class Fields {
 public:
  Fields(const Json& object, std::string path);

  bool given(const char* name);       // whether a field that may be left out is there
  bool has(const char* name);         // whether it is there and not null
  const Json& any(const char* name);  // the field as it is
  std::string text(const char* name);
  std::string one_of(const char* name, std::initializer_list<const char*> known);
  std::int64_t whole(const char* name, std::int64_t least, std::int64_t most = std::int64_t{1} << 62);
  double number(const char* name);
  double at_least_0(const char* name);
  double above_0(const char* name);
  bool truth(const char* name);
  Fields object(const char* name);
  // Calls `read` with each element and its path.
  void list(const char* name, const std::function<void(const Json&, const std::string&)>& read);
  std::vector<std::int64_t> wholes(const char* name, std::int64_t least);
  void done() const;  // refuses fields that nobody asked for

  std::string where(const std::string& name) const;
  [[noreturn]] void misfit(const std::string& name, const Json& found, const std::string& expected) const;

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string> seen_;
};

std::string shown(const Json& value);

}  // namespace starflow
