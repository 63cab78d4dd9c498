// The published schemas of manifests and build records, which say what each field may be.
#pragma once

#include "plain/json.hpp"

namespace starflow {

// Sees that `value` is what a schema calls `definition`, such as `AutoregressiveManifest` or `BuildRecord`: every field has its type
// and range, none is missing, and none is unknown. Misfit if it is not.
void check_schema(const Json& value, const std::string& definition);

}  // namespace starflow
