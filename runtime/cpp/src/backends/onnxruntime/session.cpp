#include "backends/onnxruntime/session.hpp"

#include <cstring>

#include "plain/error.hpp"

namespace starflow {
namespace {

// How long a worker thread spins while it waits for the next operator or step. ONNX Runtime's default of 40 ms lasts
// into the steps of the next flow block and takes cores from the workers of its session. Operators of a large graph
// that no worker helps with take longer than the short time.
const char* spin_microseconds(std::int64_t weight_bytes) { return weight_bytes > large_weights ? "1000" : "300"; }

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

Session::Session(const OnnxRuntime& library, const Bundle& bundle, const File& graph, const File& weights,
                 const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs,
                 const Provider& provider, int threads, std::int64_t weight_bytes, const DeviceMemory* device)
    : library_(library),
      name_(graph.path.substr(graph.path.rfind('/') + 1)),
      inputs_(inputs),
      outputs_(outputs),
      session_(nullptr, library.api().ReleaseSession),
      host_(nullptr, library.api().ReleaseMemoryInfo),
      device_(device) {
  const OrtApi& api = library.api();
  for (const auto* specs : {&inputs_, &outputs_}) {
    for (const TensorSpec& spec : *specs) {
      if (spec.type == Type::bfloat16 && device == nullptr)
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
    library.check(api.AddSessionConfigEntry(made, "session.intra_op.spin_duration_us",
                                            spin_microseconds(weight_bytes)));
    library.check(api.SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_FATAL));
    append_provider(library, made, provider);
    OrtSession* session = nullptr;
    library.check(api.CreateSession(library.environment(), bundle.path(graph).c_str(), made, &session));
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    library.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    host_.reset(memory);
    compare("inputs", inputs_, true);
    compare("outputs", outputs_, false);
  } catch (const OnnxRuntimeFailure& failure) {
    const std::string reason = bundle.path(graph) + ": ONNX Runtime cannot load it (" + failure.what() + ")";
    if (device != nullptr) backend_error(reason + " on " + provider.chain[0]);
    bundle_error(reason + "; export the bundle again");
  }
  bundle.check_unchanged({&graph, &weights});
}

// A size that the graph does not tell.
constexpr std::int64_t nameless = tokens_of_run - 1;

// Sees that the graph on disk is the one the manifest describes. A dynamic size may have any name.
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
      std::vector<const char*> symbols(sizes);
      library_.check(api.GetSymbolicDimensions(tensor_info, symbols.data(), sizes));
      for (std::size_t axis = 0; axis < sizes; ++axis)
        if (shape[axis] == tokens_of_run && *symbols[axis] == '\0') shape[axis] = nameless;
    }
    if (found != spec.name || shape != spec.shape || type != element_type(spec.type)) {
      bundle_error(name_ + ": found " + found + " among its " + what +
                   ", whose name, type or shape is not what the manifest says of " + spec.name +
                   "; export the bundle again");
    }
  }
}

Handle<OrtValue> Session::tensor(const TensorSpec& spec, int count, const Memory& memory) const {
  std::vector<std::int64_t> shape = spec.shape;
  for (std::int64_t& size : shape) size = size == tokens_of_run ? count : size;
  OrtValue* value = nullptr;
  library_.check(library_.api().CreateTensorWithDataAsOrtValue(memory.on_device() ? device_->info() : host_.get(),
                                                               memory.data(), memory.bytes(), shape.data(),
                                                               shape.size(), element_type(spec.type), &value));
  return {value, library_.api().ReleaseValue};
}

Binding Session::bind(int count, const Place& input, const Place& output) const {
  const OrtApi& api = library_.api();
  try {
    OrtIoBinding* made = nullptr;
    library_.check(api.CreateIoBinding(session_.get(), &made));
    Binding binding{{made, api.ReleaseIoBinding}, {}};
    for (const TensorSpec& spec : inputs_) {
      Handle<OrtValue> value = tensor(spec, count, *input(spec));
      library_.check(api.BindInput(made, spec.name.c_str(), value.get()));
      if (device_ != nullptr && spec.updated_by.empty()) binding.anew.emplace_back(spec.name, std::move(value));
    }
    for (const TensorSpec& spec : outputs_) {
      if (const Memory* place = output(spec))
        library_.check(api.BindOutput(made, spec.name.c_str(), tensor(spec, count, *place).get()));
    }
    return binding;
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(name_ + ": ONNX Runtime cannot bind its buffers (" + failure.what() + ")");
  }
}

void Session::run(const Binding& binding) const {
  try {
    for (const auto& [name, value] : binding.anew)
      library_.check(library_.api().BindInput(binding.io.get(), name.c_str(), value.get()));
    library_.check(library_.api().RunWithBinding(session_.get(), nullptr, binding.io.get()));
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(name_ + ": ONNX Runtime cannot run it (" + failure.what() + ")");
  }
}

Memory Session::allocate(const TensorSpec& spec, int count) const {
  return device_ == nullptr ? Memory(spec, count) : device_->allocate(spec, count);
}

void Session::write(const Memory& target, const void* values) const {
  if (target.on_device()) {
    device_->write(target, values);
  } else {
    std::memcpy(target.data(), values, target.bytes());
  }
}

const void* Session::read(const Memory& source, std::vector<std::byte>& kept) const {
  if (!source.on_device()) return source.data();
  kept.resize(source.bytes());
  device_->read(source, kept.data());
  return kept.data();
}

}  // namespace starflow
