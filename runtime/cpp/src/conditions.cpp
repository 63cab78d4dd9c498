#include "conditions.hpp"

#include <algorithm>
#include <cmath>

#include "plain/error.hpp"

namespace starflow {
namespace {

std::string shape_of(const Conditioning& spec) {
  return "[N, " + std::to_string(spec.tokens) + ", " + std::to_string(spec.width) + "]";
}

void check_number(std::size_t found, std::size_t count, const std::string& what) {
  if (found != 1 && found != count) {
    usage_error(std::to_string(found) + " " + what + " for " + std::to_string(count) +
                " images; give one for all images, or one for each");
  }
}

void check_tokens(const std::vector<float>& tokens, const Conditioning& spec, std::size_t count,
                  const std::string& what) {
  const auto size = static_cast<std::size_t>(spec.tokens * spec.width);
  if (tokens.size() % size != 0)
    usage_error("the " + what + " has " + std::to_string(tokens.size()) + " values; this bundle takes float32 " +
                shape_of(spec));
  if (!std::all_of(tokens.begin(), tokens.end(), [](float value) { return std::isfinite(value); }))
    usage_error("the " + what + " holds NaN or infinite values");
  check_number(tokens.size() / size, count, what + "s");
}

// One value for all images, or that of an image.
template <typename Value>
const Value* value_of(const std::vector<Value>& values, std::size_t size, std::size_t image) {
  return values.data() + (values.size() == size ? 0 : image * size);
}

}  // namespace

std::vector<float> BatchConditions::token_rows(bool guided) const {
  std::vector<float> rows = tokens;
  if (guided) rows.insert(rows.end(), null_tokens.begin(), null_tokens.end());
  return rows;
}

std::vector<std::int64_t> BatchConditions::label_rows(bool guided) const {
  std::vector<std::int64_t> rows = labels;
  if (guided) rows.insert(rows.end(), null_labels.begin(), null_labels.end());
  return rows;
}

Conditions::Conditions(const Conditioning& spec, std::size_t count, const Request& request, bool guided)
    : spec_(spec), request_(request) {
  const bool tokens = !request.condition.empty() || !request.null_condition.empty();
  if (spec.kind == "none" && (tokens || !request.labels.empty()))
    usage_error("this model is unconditional; leave the condition out");
  if (spec.kind == "features" && !request.labels.empty())
    usage_error("this model has no classes; give a condition, float32 " + shape_of(spec));
  if (spec.kind == "class-label" && tokens)
    usage_error("this model takes classes; give labels instead of condition tokens");
  if (spec.kind == "features" || (spec.kind == "class-token" && tokens)) {
    if (!request.labels.empty()) usage_error("labels and condition tokens exclude each other; leave one out");
    if (request.condition.empty()) usage_error("this model needs a condition: float32 " + shape_of(spec));
    check_tokens(request.condition, spec, count, "condition");
    if (!request.null_condition.empty()) check_tokens(request.null_condition, spec, count, "null condition");
    if (request.null_condition.empty() && guided)
      usage_error("guidance also needs the null condition: float32 " + shape_of(spec));
  }
  for (const std::int64_t label : request.labels) {
    if (label < 0 || label >= spec.num_classes)
      usage_error("label " + std::to_string(label) + " is not a class of this model; it has 0 to " +
                  std::to_string(spec.num_classes - 1));
  }
  if (!request.labels.empty()) check_number(request.labels.size(), count, "labels");
}

BatchConditions Conditions::of(const std::vector<std::size_t>& index) const {
  BatchConditions found;
  const auto size = static_cast<std::size_t>(spec_.tokens * spec_.width);
  for (const std::size_t image : index) {
    const std::int64_t label = request_.labels.empty() ? spec_.num_classes : *value_of(request_.labels, 1, image);
    if (spec_.kind == "class-label") {
      found.labels.push_back(label);
      found.null_labels.push_back(spec_.num_classes);
    } else if (!request_.condition.empty()) {
      const std::vector<float>& null = request_.null_condition.empty() ? request_.condition : request_.null_condition;
      const float *own = value_of(request_.condition, size, image), *other = value_of(null, size, image);
      found.tokens.insert(found.tokens.end(), own, own + size);
      found.null_tokens.insert(found.null_tokens.end(), other, other + size);
    } else if (spec_.kind == "class-token") {
      for (auto* tokens : {&found.tokens, &found.null_tokens}) {
        tokens->resize(tokens->size() + size);
        const std::int64_t hot = tokens == &found.tokens ? label : spec_.num_classes;
        (*tokens)[tokens->size() - size + static_cast<std::size_t>(hot)] = 1;
      }
    }
  }
  return found;
}

}  // namespace starflow
