// The published schema of manifests, which says what each field may be.
#pragma once

#include "plain/json.hpp"

namespace starflow {

// Sees that `value` is what the schema calls `definition`, such as `AutoregressiveManifest`: every field has its type
// and range, none is missing, and none is unknown. Misfit if it is not.
void check_schema(const Json& value, const std::string& definition);

}  // namespace starflow
