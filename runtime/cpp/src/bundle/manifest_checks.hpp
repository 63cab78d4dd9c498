// Sizes that a manifest states twice must agree: a runtime may rely on either.
#pragma once

#include "bundle/manifest.hpp"

namespace starflow {

// Misfit if the parts of a manifest of one shape and one batch size do not fit together.
void check_manifest(const Manifest& manifest);

// Misfit if a decode plan does not fit the manifest. A plan that is `stored`, which runs unasked, has no students.
void check_plan(const DecodePlan& plan, const Manifest& manifest, bool stored = false);

}  // namespace starflow
