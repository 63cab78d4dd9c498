// A provider "cuda" that has memory of its own, as its callers see it, and computes on the CPU.
#include "backends/onnxruntime/provider.hpp"

#include "plain/error.hpp"

namespace starflow {

Provider choose_provider(const OnnxRuntime&, const std::string& name) {
  if (name == "cuda") return {"cuda", {"CPUExecutionProvider"}};
  if (name == "cpu") return {"cpu", {}};
  usage_error("provider " + name + " is not known; choose cpu or cuda");
}

void append_provider(const OnnxRuntime&, OrtSessionOptions*, const Provider&) {}

}  // namespace starflow
