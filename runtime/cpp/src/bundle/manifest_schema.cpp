#include "bundle/manifest_schema.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <mutex>
#include <regex>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "schema_texts.hpp"  // written by CMake from runtime/schema/

namespace starflow {
namespace {

// std::regex recurses once for each character, so long text would overflow the stack.
class ShortText {
 public:
  explicit ShortText(const std::string& pattern) : regex_(pattern) {}
  static bool search(const std::string& text, const ShortText& pattern) {
    return text.size() <= 1000 && std::regex_search(text, pattern.regex_);
  }

 private:
  std::regex regex_;
};

// `prefixItems` is what drafts before 2020-12 of JSON Schema, which Valijson knows, call `items`.
void rename_prefix_items(Json& schema) {
  if (schema.is_object() && schema.contains("prefixItems")) schema["items"] = schema["prefixItems"];
  if (schema.is_structured()) std::for_each(schema.begin(), schema.end(), rename_prefix_items);
}

const valijson::Schema& schema_of(const std::string& definition) {
  static std::mutex lock;
  static std::map<std::string, std::unique_ptr<valijson::Schema>> schemas;
  const std::lock_guard<std::mutex> locked(lock);
  std::unique_ptr<valijson::Schema>& schema = schemas[definition];
  if (!schema) {
    Json text = Json::parse(manifest_schema_text), build = Json::parse(build_schema_text);
    text["$defs"].update(build["$defs"]);
    build.erase("$defs");
    text["$defs"]["BuildRecord"] = build;
    rename_prefix_items(text);
    Json& definitions = text["$defs"];
    definitions["DecodePlan"] = {
        {"type", "object"},  // a plan's own file
        {"properties", {{"blocks", definitions["CalibratedDecodePlan"]["properties"]["blocks"]}}},
        {"required", {"blocks"}},
        {"additionalProperties", false}};
    text.erase("anyOf");
    text["allOf"] = {{{"$ref", "#/$defs/" + definition}}};
    schema = std::make_unique<valijson::Schema>();
    valijson::SchemaParser(valijson::SchemaParser::kDraft7)
        .populateSchema(valijson::adapters::NlohmannJsonAdapter(text), *schema);
  }
  return *schema;
}

}  // namespace

void check_schema(const Json& value, const std::string& definition) {
  valijson::ValidationResults results;
  valijson::ValidatorT<ShortText> validator;
  if (validator.validate(schema_of(definition), valijson::adapters::NlohmannJsonAdapter(value), &results)) return;
  valijson::ValidationResults::Error each, deepest;
  while (results.popError(each)) {
    if (deepest.context.empty() || each.context.size() > deepest.context.size()) deepest = each;
  }
  std::string field;
  const Json* found = &value;
  for (std::size_t index = 1; index < deepest.context.size(); ++index) {  // "<root>", "[blocks]", "[0]"
    const std::string name = deepest.context[index].substr(1, deepest.context[index].size() - 2);
    field += (field.empty() ? "" : ".") + name;
    found = found->is_array() ? &(*found)[std::stoul(name)] : &(*found)[name];
  }
  std::string says = deepest.description.substr(0, deepest.description.find_last_not_of('.') + 1);
  says[0] = static_cast<char>(std::tolower(says[0]));
  if (found->is_primitive()) says += ", found " + shown(*found);
  throw Misfit((field.empty() ? "" : field + ": ") + says);
}

}  // namespace starflow
