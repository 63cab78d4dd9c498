#include "plain/json_fields.hpp"

#include <cmath>

namespace starflow {

Json parse_json(const std::string& text) {
  constexpr int most_depth = 100;  // manifests have 8
  try {
    return Json::parse(text, [](int depth, Json::parse_event_t, Json&) {
      if (depth > most_depth) throw Misfit("is not JSON (it is nested too deeply)");
      return true;
    });
  } catch (const Json::exception& error) {
    throw Misfit(std::string("is not JSON (") + error.what() + ")");
  }
}

std::string shown(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object())
    throw Misfit((path_.empty() ? "value" : path_) + ": found " + shown(object) + ", expected named fields");
}

std::string Fields::where(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

void Fields::misfit(const std::string& name, const Json& found, const std::string& expected) const {
  throw Misfit(where(name) + ": found " + shown(found) + ", expected " + expected);
}

bool Fields::given(const char* name) {
  seen_.insert(name);
  return object_.contains(name);
}

bool Fields::has(const char* name) { return given(name) && !object_[name].is_null(); }

const Json& Fields::any(const char* name) {
  seen_.insert(name);
  const auto found = object_.find(name);
  if (found == object_.end()) throw Misfit(where(name) + ": is missing");
  return *found;
}

std::string Fields::text(const char* name) {
  const Json& value = any(name);
  if (!value.is_string()) misfit(name, value, "text");
  return value.get<std::string>();
}

std::string Fields::one_of(const char* name, std::initializer_list<const char*> known) {
  const std::string value = text(name);
  std::string names;
  for (const char* each : known) {
    if (value == each) return value;
    names += (names.empty() ? "" : ", ") + std::string(each);
  }
  misfit(name, value, "one of " + names);
}

std::int64_t Fields::whole(const char* name, std::int64_t least, std::int64_t most) {
  const Json& value = any(name);
  if (!value.is_number_integer()) misfit(name, value, "a whole number");
  const bool too_large = value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most);
  if (too_large || value.get<std::int64_t>() > most) misfit(name, value, std::to_string(most) + " or less");
  if (value.get<std::int64_t>() < least) misfit(name, value, std::to_string(least) + " or more");
  return value.get<std::int64_t>();
}

double Fields::number(const char* name) {
  const Json& value = any(name);
  if (!value.is_number() || !std::isfinite(value.get<double>())) misfit(name, value, "a finite number");
  return value.get<double>();
}

double Fields::at_least_0(const char* name) {
  const double value = number(name);
  if (value < 0) misfit(name, value, "0 or more");
  return value;
}

double Fields::above_0(const char* name) {
  const double value = number(name);
  if (!(value > 0)) misfit(name, value, "more than 0");
  return value;
}

bool Fields::truth(const char* name) {
  const Json& value = any(name);
  if (!value.is_boolean()) misfit(name, value, "true or false");
  return value.get<bool>();
}

Fields Fields::object(const char* name) { return {any(name), where(name)}; }

void Fields::list(const char* name, const std::function<void(const Json&, const std::string&)>& read) {
  const Json& value = any(name);
  if (!value.is_array()) misfit(name, value, "a list");
  for (std::size_t index = 0; index < value.size(); ++index)
    read(value[index], where(name) + "." + std::to_string(index));
}

std::vector<std::int64_t> Fields::wholes(const char* name, std::int64_t least) {
  std::vector<std::int64_t> values;
  list(name, [&](const Json& value, const std::string& path) {
    constexpr std::int64_t most = std::int64_t{1} << 40;
    if (!value.is_number_integer()) throw Misfit(path + ": found " + shown(value) + ", expected a whole number");
    const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= std::uint64_t{most} : true;
    if (!fits || value.get<std::int64_t>() < least)
      throw Misfit(path + ": found " + shown(value) + ", expected " + std::to_string(least) + " or more");
    values.push_back(value.get<std::int64_t>());
  });
  return values;
}

void Fields::done() const {
  for (const auto& [name, value] : object_.items()) {
    if (seen_.count(name) == 0) throw Misfit("unknown field " + where(name));
  }
}

}  // namespace starflow
