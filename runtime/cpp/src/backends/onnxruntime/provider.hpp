// The execution providers of ONNX Runtime that bundles can run on.
#pragma once

#include <vector>

#include "backends/onnxruntime/library.hpp"

namespace starflow {

struct Provider {
  std::string name;  // in options, such as `cuda`
  // ONNX Runtime's names. Each leaves the nodes that it cannot run, such as those that compute shapes, to the next one,
  // and the last one to the CPU; empty for the CPU itself.
  std::vector<std::string> chain;
  const char* memory = "Cpu";  // what ONNX Runtime calls its memory

  bool has_own_memory() const { return !chain.empty(); }
};

// The provider of a name. A usage error if there is none, a backend error if the library was built without it.
Provider choose_provider(const OnnxRuntime& library, const std::string& name);

// Adds a provider to the options of a session. Throws OnnxRuntimeFailure if its libraries do not load: ONNX Runtime
// never goes on without it.
void append_provider(const OnnxRuntime& library, OrtSessionOptions* options, const Provider& provider);

}  // namespace starflow
