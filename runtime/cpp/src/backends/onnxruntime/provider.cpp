#include "backends/onnxruntime/provider.hpp"

#include <algorithm>

#include "plain/error.hpp"

namespace starflow {
namespace {

const char* const cuda = "CUDAExecutionProvider";
const char* const tensorrt = "TensorrtExecutionProvider";
// TF32 would compute float32 products with ten bits, an error of 1e-3.
constexpr const char* cuda_keys[] = {"use_tf32"};
constexpr const char* cuda_values[] = {"0"};

void append(const OnnxRuntime& library, OrtSessionOptions* options, const std::string& name) {
  const OrtApi& api = library.api();
  if (name == cuda) {
    OrtCUDAProviderOptionsV2* made = nullptr;
    library.check(api.CreateCUDAProviderOptions(&made));
    const Handle<OrtCUDAProviderOptionsV2> owned(made, api.ReleaseCUDAProviderOptions);
    library.check(api.UpdateCUDAProviderOptions(made, cuda_keys, cuda_values, 1));
    library.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, made));
  } else {
    OrtTensorRTProviderOptionsV2* made = nullptr;
    library.check(api.CreateTensorRTProviderOptions(&made));
    const Handle<OrtTensorRTProviderOptionsV2> owned(made, api.ReleaseTensorRTProviderOptions);
    library.check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, made));
  }
}

bool is_built_in(const OnnxRuntime& library, const std::string& name) {
  char** names = nullptr;
  int count = 0;
  library.check(library.api().GetAvailableProviders(&names, &count));
  const bool found = std::count(names, names + count, name) > 0;
  library.check(library.api().ReleaseAvailableProviders(names, count));
  return found;
}

}  // namespace

Provider choose_provider(const OnnxRuntime& library, const std::string& name) {
  const Provider known[] = {{"cpu", {}}, {"cuda", {cuda}, "Cuda"}, {"tensorrt", {tensorrt, cuda}, "Cuda"}};
  const auto found =
      std::find_if(std::begin(known), std::end(known), [&](const Provider& each) { return each.name == name; });
  if (found == std::end(known)) usage_error("provider " + name + " is not known; choose cpu, cuda or tensorrt");
  if (found->has_own_memory() && !is_built_in(library, found->chain[0]))
    backend_error("ONNX Runtime " + library.release() + " was built without " + found->chain[0] +
                  "; name the library of its GPU build in STARFLOW_ONNXRUNTIME");
  return *found;
}

void append_provider(const OnnxRuntime& library, OrtSessionOptions* options, const Provider& provider) {
  for (const std::string& name : provider.chain) append(library, options, name);
}

}  // namespace starflow
