// Errors of the kinds that the public header lists.
#pragma once

#include <starflow/starflow.hpp>

namespace starflow {

[[noreturn]] void usage_error(const std::string& message);
[[noreturn]] void bundle_error(const std::string& message);
[[noreturn]] void backend_error(const std::string& message);

}  // namespace starflow
