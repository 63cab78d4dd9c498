#include "backends/onnxruntime/session.hpp"

#include <cstring>

#include "plain/error.hpp"

namespace starflow {
namespace {

// How long a worker thread spins while it waits for the next operator or step. ONNX Runtime's default of 40 ms lasts
// into the steps of the next flow block and takes cores from the workers of its session.
const char* const spin_microseconds = "1000";

ONNXTensorElementDataType element_type(Type type) {
  switch (type) {
    case Type::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Type::float16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Type::bfloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case Type::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Type::int8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

}  // namespace

Memory::Memory(const TensorSpec& spec, int count)
    : bytes_(static_cast<std::size_t>(spec.values(count)) * item_bytes(spec.type)),
      data_(static_cast<std::byte*>(::operator new[](bytes_, alignment))) {
  std::memset(data_.get(), 0, bytes_);
}

Session::Session(const OnnxRuntime& library, const Bundle& bundle, const File& graph, const File& weights,
                 const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs, int threads)
    : library_(library),
      name_(graph.path.substr(graph.path.rfind('/') + 1)),
      inputs_(inputs),
      outputs_(outputs),
      session_(nullptr, library.api().ReleaseSession),
      memory_(nullptr, library.api().ReleaseMemoryInfo) {
  const OrtApi& api = library.api();
  for (const auto* specs : {&inputs_, &outputs_}) {
    for (const TensorSpec& spec : *specs) {
      if (spec.type == Type::bfloat16)
        backend_error(spec.name + " is bfloat16, which this backend cannot compute; use another variant");
    }
  }
  bundle.content(graph);  // compares its digest
  bundle.check_unchanged({&graph, &weights});
  try {
    OrtSessionOptions* made = nullptr;
    library.check(api.CreateSessionOptions(&made));
    const Handle<OrtSessionOptions> options(made, api.ReleaseSessionOptions);
    library.check(api.SetIntraOpNumThreads(made, threads));
    library.check(api.AddSessionConfigEntry(made, "session.intra_op.spin_duration_us", spin_microseconds));
    library.check(api.SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_FATAL));
    OrtSession* session = nullptr;
    library.check(api.CreateSession(library.environment(), bundle.path(graph).c_str(), made, &session));
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    library.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
    compare("inputs", inputs_, true);
    compare("outputs", outputs_, false);
  } catch (const OnnxRuntimeFailure& failure) {
    bundle_error(bundle.path(graph) + ": ONNX Runtime cannot load it (" + failure.reason +
                 "); export the bundle again");
  }
  bundle.check_unchanged({&graph, &weights});
}

// Sees that the graph on disk is the one the manifest describes.
void Session::compare(const std::string& what, const std::vector<TensorSpec>& specs, bool is_input) const {
  const OrtApi& api = library_.api();
  OrtAllocator* allocator = nullptr;
  library_.check(api.GetAllocatorWithDefaultOptions(&allocator));
  std::size_t count = 0;
  library_.check(is_input ? api.SessionGetInputCount(session_.get(), &count)
                          : api.SessionGetOutputCount(session_.get(), &count));
  if (count != specs.size())
    bundle_error(name_ + ": has " + std::to_string(count) + " " + what + ", the manifest says " +
                 std::to_string(specs.size()) + "; export the bundle again");
  for (std::size_t index = 0; index < count; ++index) {
    const TensorSpec& spec = specs[index];
    char* allocated = nullptr;
    library_.check(is_input ? api.SessionGetInputName(session_.get(), index, allocator, &allocated)
                            : api.SessionGetOutputName(session_.get(), index, allocator, &allocated));
    const std::string found = allocated;
    library_.check(api.AllocatorFree(allocator, allocated));
    OrtTypeInfo* type_info = nullptr;
    library_.check(is_input ? api.SessionGetInputTypeInfo(session_.get(), index, &type_info)
                            : api.SessionGetOutputTypeInfo(session_.get(), index, &type_info));
    const Handle<OrtTypeInfo> owned(type_info, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor_info = nullptr;
    library_.check(api.CastTypeInfoToTensorInfo(type_info, &tensor_info));
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::vector<std::int64_t> shape;
    if (tensor_info != nullptr) {
      std::size_t sizes = 0;
      library_.check(api.GetTensorElementType(tensor_info, &type));
      library_.check(api.GetDimensionsCount(tensor_info, &sizes));
      shape.resize(sizes);
      library_.check(api.GetDimensions(tensor_info, shape.data(), sizes));  // -1 for a symbol, as `tokens_of_run`
    }
    if (found != spec.name || shape != spec.shape || type != element_type(spec.type)) {
      bundle_error(name_ + ": found " + found + " among its " + what +
                   ", whose name, type or shape is not what the manifest says of " + spec.name +
                   "; export the bundle again");
    }
  }
}

Handle<OrtValue> Session::tensor(const TensorSpec& spec, int count, void* data) const {
  std::vector<std::int64_t> shape = spec.shape;
  for (std::int64_t& size : shape) size = size == tokens_of_run ? count : size;
  OrtValue* value = nullptr;
  const std::size_t bytes = static_cast<std::size_t>(spec.values(count)) * item_bytes(spec.type);
  library_.check(library_.api().CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(),
                                                               element_type(spec.type), &value));
  return {value, library_.api().ReleaseValue};
}

Handle<OrtIoBinding> Session::bind(int count, const Place& input, const Place& output) const {
  const OrtApi& api = library_.api();
  try {
    OrtIoBinding* made = nullptr;
    library_.check(api.CreateIoBinding(session_.get(), &made));
    Handle<OrtIoBinding> binding(made, api.ReleaseIoBinding);
    for (const TensorSpec& spec : inputs_)
      library_.check(api.BindInput(made, spec.name.c_str(), tensor(spec, count, input(spec)).get()));
    for (const TensorSpec& spec : outputs_) {
      if (void* place = output(spec))
        library_.check(api.BindOutput(made, spec.name.c_str(), tensor(spec, count, place).get()));
    }
    return binding;
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(name_ + ": ONNX Runtime cannot bind its buffers (" + failure.reason + ")");
  }
}

void Session::run(const OrtIoBinding* binding) const {
  try {
    library_.check(library_.api().RunWithBinding(session_.get(), nullptr, binding));
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(name_ + ": ONNX Runtime cannot run it (" + failure.reason + ")");
  }
}

}  // namespace starflow
