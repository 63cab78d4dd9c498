#include "plain/json.hpp"

namespace starflow {

Json parse_json(const std::string& text) {
  constexpr int most_depth = 100;  // manifests have 8
  constexpr std::int64_t most = std::int64_t{1} << 62;
  if (text.find('\0') != std::string::npos)  // where the parser would end, whatever follows
    throw Misfit("is not JSON (it holds a zero byte)");
  try {
    return Json::parse(text, [](int depth, Json::parse_event_t event, Json& value) {
      if (depth > most_depth) throw Misfit("is not JSON (it is nested too deeply)");
      if (event == Json::parse_event_t::value && value.is_number_integer() && (value > most || value < -most))
        throw Misfit("the number " + value.dump() + " is too large");
      return true;
    });
  } catch (const Json::exception& error) {
    throw Misfit(std::string("is not JSON (") + error.what() + ")");
  }
}

std::string shown(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60);
}

}  // namespace starflow
