#include "backends/onnxruntime/memory.hpp"

#include <cstring>
#include <new>

#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr std::align_val_t alignment{64};

// An ONNX model: b = Identity(a), uint8 [n], opset 13.
constexpr char copy_model[] =
    "\x08\x08:<\n\x10\n\x01"
    "a\x12\x01"
    "b\"\x08Identity\x12\x04"
    "copyZ\x10\n\x01"
    "a\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01"
    "nb\x10\n\x01"
    "b\x12\x0b\n\t\x08\x02\x12\x05\n\x03\x12\x01"
    "nB\x04\n\x00\x10\r";

}  // namespace

Memory::Memory(const TensorSpec& spec, int count)
    : bytes_(static_cast<std::size_t>(spec.values(count)) * item_bytes(spec.type)),
      data_(::operator new[](bytes_, alignment), [](void* memory) { ::operator delete[](memory, alignment); }) {
  std::memset(data_.get(), 0, bytes_);
}

DeviceMemory::DeviceMemory(const OnnxRuntime& library, const Provider& provider)
    : library_(library),
      session_(nullptr, library.api().ReleaseSession),
      info_(nullptr, library.api().ReleaseMemoryInfo),
      host_(nullptr, library.api().ReleaseMemoryInfo),
      allocator_(nullptr, library.api().ReleaseAllocator) {
  const OrtApi& api = library.api();
  try {
    OrtSessionOptions* options = nullptr;
    library.check(api.CreateSessionOptions(&options));
    const Handle<OrtSessionOptions> owned(options, api.ReleaseSessionOptions);
    library.check(api.SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
    append_provider(library, options, provider);
    OrtSession* session = nullptr;
    library.check(
        api.CreateSessionFromArray(library.environment(), copy_model, sizeof copy_model - 1, options, &session));
    session_.reset(session);
    OrtMemoryInfo *info = nullptr, *host = nullptr;
    library.check(api.CreateMemoryInfo(provider.memory, OrtDeviceAllocator, 0, OrtMemTypeDefault, &info));
    info_.reset(info);
    library.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &host));
    host_.reset(host);
    OrtAllocator* allocator = nullptr;
    library.check(api.CreateAllocator(session, info, &allocator));
    allocator_.reset(allocator);
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error("provider " + provider.name + ": ONNX Runtime " + library.release() + " cannot use it (" +
                  failure.what() + "); see that its libraries and the driver of the GPU are installed");
  }
}

Memory DeviceMemory::allocate(const TensorSpec& spec, int count) const {
  const Memory zeros(spec, count);
  Memory made;
  void* data = nullptr;
  try {
    library_.check(library_.api().AllocatorAlloc(allocator_.get(), zeros.bytes(), &data));
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(spec.name + " needs " + std::to_string(zeros.bytes()) + " bytes on the device (" + failure.what() +
                  "); free some, or export with a smaller --batch");
  }
  const auto free = [&api = library_.api(), allocator = allocator_.get()](void* memory) {
    if (OrtStatus* failed = api.AllocatorFree(allocator, memory)) api.ReleaseStatus(failed);
  };
  made.data_ = {data, free};
  made.bytes_ = zeros.bytes();
  made.on_device_ = true;
  write(made, zeros.data());
  return made;
}

void DeviceMemory::write(const Memory& target, const void* values) const {
  copy(target.data(), info_.get(), const_cast<void*>(values), host_.get(), target.bytes());
}

void DeviceMemory::read(const Memory& source, void* values) const {
  copy(values, host_.get(), source.data(), info_.get(), source.bytes());
}

void DeviceMemory::copy(void* target, const OrtMemoryInfo* target_info, void* source, const OrtMemoryInfo* source_info,
                        std::size_t bytes) const {
  const OrtApi& api = library_.api();
  try {
    const auto tensor = [&](void* data, const OrtMemoryInfo* info) {
      const auto size = static_cast<std::int64_t>(bytes);
      OrtValue* made = nullptr;
      library_.check(
          api.CreateTensorWithDataAsOrtValue(info, data, bytes, &size, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &made));
      return Handle<OrtValue>(made, api.ReleaseValue);
    };
    OrtIoBinding* binding = nullptr;
    library_.check(api.CreateIoBinding(session_.get(), &binding));
    const Handle<OrtIoBinding> owned(binding, api.ReleaseIoBinding);
    library_.check(api.BindInput(binding, "a", tensor(source, source_info).get()));
    library_.check(api.BindOutput(binding, "b", tensor(target, target_info).get()));
    library_.check(api.RunWithBinding(session_.get(), nullptr, binding));
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error("ONNX Runtime cannot copy " + std::to_string(bytes) + " bytes between host and device (" +
                  failure.what() + ")");
  }
}

}  // namespace starflow
