// The real GPU and TensorRT. Their libraries are loaded at run time, so a library that was built with their headers
// also starts where there is neither: CUDA's driver by its C API, TensorRT by the classes of its headers.
#include <NvInferRuntime.h>
#include <cuda.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <regex>
#include <sstream>

#include "backends/tensorrt/device.hpp"
#include "plain/error.hpp"
#include "plain/mapped_file.hpp"

namespace starflow {

const bool has_tensorrt = true;

namespace {

constexpr std::size_t most_reason = 300;  // characters of what TensorRT says is wrong
const char* const elsewhere = "; use the onnxruntime backend";

void* load_library(const std::string& library) { return ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL); }

#define CUDA_FUNCTIONS(use)                                                                                           \
  use(cuInit) use(cuDeviceGetCount) use(cuDeviceGet) use(cuDeviceGetName) use(cuDeviceGetAttribute)                   \
      use(cuDevicePrimaryCtxRetain) use(cuDevicePrimaryCtxRelease) use(cuCtxSetCurrent) use(cuMemGetInfo)             \
          use(cuMemAlloc) use(cuMemFree) use(cuMemAllocHost) use(cuMemFreeHost) use(cuMemcpyHtoDAsync)                \
              use(cuMemcpyDtoHAsync) use(cuMemcpyDtoDAsync) use(cuMemsetD8Async) use(cuStreamCreate)                  \
                  use(cuStreamDestroy) use(cuStreamSynchronize) use(cuStreamBeginCapture) use(cuStreamEndCapture)     \
                      use(cuGraphInstantiateWithFlags) use(cuGraphDestroy) use(cuGraphExecDestroy) use(cuGraphLaunch) \
                          use(cuGetErrorName) use(cuGetErrorString)

// The functions of CUDA's driver. cuda.h renames some of them to the version it describes, and the library is asked for
// that name.
struct Driver {
#define STARFLOW_NAME(function) #function
#define STARFLOW_DECLARE(function) decltype(&::function) function##_;
  CUDA_FUNCTIONS(STARFLOW_DECLARE)

  Driver() {
    const std::string name = "libcuda.so.1";
    void* library = load_library(name);
    if (library == nullptr)
      backend_error(std::string("no usable NVIDIA GPU or driver (") + ::dlerror() + ")" + elsewhere);
#define STARFLOW_LOAD(function) load(library, function##_, STARFLOW_NAME(function));
    CUDA_FUNCTIONS(STARFLOW_LOAD)
  }

  template <typename Function>
  void load(void* library, Function& function, const char* name) {
    function = reinterpret_cast<Function>(::dlsym(library, name));
    if (function == nullptr)
      backend_error(std::string("the driver of the NVIDIA GPU has no ") + name + "; install a newer driver");
  }

  std::string reason(CUresult error) const {
    const char *name = nullptr, *text = nullptr;
    cuGetErrorName_(error, &name);
    cuGetErrorString_(error, &text);
    return std::string(name == nullptr ? "unknown error" : name) + ": " + (text == nullptr ? "no reason given" : text);
  }
};

CUdeviceptr device_pointer(const void* memory) { return reinterpret_cast<CUdeviceptr>(memory); }
CUstream stream_of(void* stream) { return static_cast<CUstream>(stream); }

class NvidiaGpu : public Gpu {
 public:
  NvidiaGpu() {
    int count = 0;
    CUresult error = driver_.cuInit_(0);
    if (error == CUDA_SUCCESS) error = driver_.cuDeviceGetCount_(&count);
    if (error != CUDA_SUCCESS || count == 0)
      backend_error("no usable NVIDIA GPU or driver (" +
                    (error == CUDA_SUCCESS ? std::string("none is visible") : driver_.reason(error)) + ")" + elsewhere);
    call("cuDeviceGet", driver_.cuDeviceGet_(&device_, 0));
    char name[256] = "";
    int major = 0, minor = 0;
    call("cuDeviceGetName", driver_.cuDeviceGetName_(name, sizeof name, device_));
    call("cuDeviceGetAttribute",
         driver_.cuDeviceGetAttribute_(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_));
    call("cuDeviceGetAttribute",
         driver_.cuDeviceGetAttribute_(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_));
    name_ = name;
    compute_capability_ = std::to_string(major) + "." + std::to_string(minor);
    // The primary context is the one that TensorRT uses through CUDA's runtime.
    call("cuDevicePrimaryCtxRetain", driver_.cuDevicePrimaryCtxRetain_(&context_, device_));
  }
  ~NvidiaGpu() override { driver_.cuDevicePrimaryCtxRelease_(device_); }

  std::string name() const override { return name_; }
  std::string compute_capability() const override { return compute_capability_; }
  void select() override { call("cuCtxSetCurrent", driver_.cuCtxSetCurrent_(context_)); }

  std::pair<std::size_t, std::size_t> memory() override {
    std::size_t free = 0, total = 0;
    select();
    call("cuMemGetInfo", driver_.cuMemGetInfo_(&free, &total));
    return {free, total};
  }

  Held allocate(std::size_t bytes) override {
    CUdeviceptr made = 0;
    const CUresult error = driver_.cuMemAlloc_(&made, bytes);
    if (error == CUDA_ERROR_OUT_OF_MEMORY) return {};
    call("cuMemAlloc", error);
    return held(reinterpret_cast<void*>(made), [this](void* memory) { driver_.cuMemFree_(device_pointer(memory)); });
  }
  Held allocate_pinned(std::size_t bytes) override {
    void* made = nullptr;
    call("cuMemAllocHost", driver_.cuMemAllocHost_(&made, bytes));
    return held(made, [this](void* memory) { driver_.cuMemFreeHost_(memory); });
  }
  Held create_stream() override {
    CUstream made = nullptr;
    call("cuStreamCreate", driver_.cuStreamCreate_(&made, CU_STREAM_NON_BLOCKING));
    return held(made, [this](void* stream) { driver_.cuStreamDestroy_(stream_of(stream)); });
  }

  void upload(void* device, const void* pinned, std::size_t bytes, void* stream) override {
    call("cuMemcpyHtoDAsync", driver_.cuMemcpyHtoDAsync_(device_pointer(device), pinned, bytes, stream_of(stream)));
  }
  void download(void* pinned, const void* device, std::size_t bytes, void* stream) override {
    call("cuMemcpyDtoHAsync", driver_.cuMemcpyDtoHAsync_(pinned, device_pointer(device), bytes, stream_of(stream)));
  }
  void copy(void* target, const void* source, std::size_t bytes, void* stream) override {
    call("cuMemcpyDtoDAsync",
         driver_.cuMemcpyDtoDAsync_(device_pointer(target), device_pointer(source), bytes, stream_of(stream)));
  }
  void zero(void* device, std::size_t bytes, void* stream) override {
    call("cuMemsetD8Async", driver_.cuMemsetD8Async_(device_pointer(device), 0, bytes, stream_of(stream)));
  }
  void synchronize(void* stream) override {
    call("cuStreamSynchronize", driver_.cuStreamSynchronize_(stream_of(stream)));
  }
  void drain(void* stream) noexcept override {
    driver_.cuCtxSetCurrent_(context_);
    driver_.cuStreamSynchronize_(stream_of(stream));
  }

  Held capture(void* stream, const std::function<void()>& work) override {
    CUgraph graph = nullptr;
    CUgraphExec made = nullptr;
    call("cuStreamBeginCapture", driver_.cuStreamBeginCapture_(stream_of(stream), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    try {
      work();
    } catch (...) {  // a stream that is still capturing cannot even be waited for
      if (driver_.cuStreamEndCapture_(stream_of(stream), &graph) == CUDA_SUCCESS) driver_.cuGraphDestroy_(graph);
      throw;
    }
    const CUresult ended = driver_.cuStreamEndCapture_(stream_of(stream), &graph);
    if (ended != CUDA_SUCCESS) throw CaptureRefused("cuStreamEndCapture: " + driver_.reason(ended));
    const CUresult error = driver_.cuGraphInstantiateWithFlags_(&made, graph, 0);
    driver_.cuGraphDestroy_(graph);
    call("cuGraphInstantiateWithFlags", error);
    return held(made, [this](void* executable) { driver_.cuGraphExecDestroy_(static_cast<CUgraphExec>(executable)); });
  }
  void launch(void* graph, void* stream) override {
    const CUresult error = driver_.cuGraphLaunch_(static_cast<CUgraphExec>(graph), stream_of(stream));
    if (error != CUDA_SUCCESS) call("cuGraphLaunch", error);
  }

 private:
  void call(const char* function, CUresult error) const {
    if (error != CUDA_SUCCESS) backend_error(std::string(function) + " failed: " + driver_.reason(error));
  }

  // What is freed by `free`, whatever the GPU says to that: after failed work, every call reports the failure again.
  template <typename Free>
  Held held(void* made, const Free& free) {
    return {made, [this, free](void* each) {
              driver_.cuCtxSetCurrent_(context_);
              free(each);
            }};
  }

  Driver driver_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  std::string name_, compute_capability_;
};

// A message of TensorRT on one line, without the parts that only its developers can use: lines that repeat the node,
// and source files on the machine it was built on.
std::string readable(const std::string& text) {
  static const std::regex place(R"(\s*In \w+ at /\S+:\d+ ?)"), code(R"(^(\w+(::\w+)*|\[\S+\]): Error Code \d+: )");
  std::string line;
  std::istringstream lines(text);
  for (std::string each; std::getline(lines, each);) {
    if (each.rfind("Invalid Node - ", 0) != 0) line += (line.empty() ? "" : " ") + each;
  }
  line = std::regex_replace(std::regex_replace(line, place, ""), code, "").substr(0, most_reason);
  while (!line.empty() && line.back() == '.') line.pop_back();
  return line;
}

// Keeps the last error that says what is wrong; those in brackets repeat the one before.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (severity <= Severity::kERROR && (text[0] != '[' || error_.empty())) error_ = text;
  }
  std::string take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::string found = readable(error_);
    error_.clear();
    return found.empty() ? "no reason given" : found;
  }

 private:
  std::mutex mutex_;
  std::string error_;
};

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  for (std::size_t index = 0; index < shape.size() && index < nvinfer1::Dims::MAX_DIMS; ++index)
    dims.d[index] = shape[index];
  return dims;
}

std::vector<std::int64_t> shape_of(const nvinfer1::Dims& dims) {
  std::vector<std::int64_t> shape;
  for (std::int32_t index = 0; index < dims.nbDims; ++index) shape.push_back(dims.d[index]);
  return shape;
}

std::string type_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return "float32";
    case nvinfer1::DataType::kHALF:
      return "float16";
    case nvinfer1::DataType::kBF16:
      return "bfloat16";
    case nvinfer1::DataType::kINT64:
      return "int64";
    case nvinfer1::DataType::kINT8:
      return "int8";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

class NvidiaContext : public ExecutionContext {
 public:
  explicit NvidiaContext(std::unique_ptr<nvinfer1::IExecutionContext> context) : context_(std::move(context)) {}

  bool set_profile(int profile, void* stream) override {
    return context_->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream));
  }
  bool set_shape(const std::string& name, const std::vector<std::int64_t>& shape) override {
    return context_->setInputShape(name.c_str(), dims_of(shape));
  }
  bool set_address(const std::string& name, void* device) override {
    return context_->setTensorAddress(name.c_str(), device);
  }
  void set_scratch(void* device, std::size_t bytes) override {
    context_->setDeviceMemoryV2(device, static_cast<std::int64_t>(bytes));
  }
  bool is_capturable([[maybe_unused]] void* stream) override {
#if defined(TRT_MAJOR_RTX) && ENABLE_FEATURE_DISABLE_RUNTIME_ALLOCATION
    return context_->isStreamCapturable(static_cast<cudaStream_t>(stream));
#else
    return true;  // only TensorRT RTX can tell
#endif
  }
  bool enqueue(void* stream) override { return context_->enqueueV3(static_cast<cudaStream_t>(stream)); }

 private:
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class NvidiaEngine : public Engine {
 public:
  NvidiaEngine(std::unique_ptr<nvinfer1::ICudaEngine> engine, const std::string& path, bool rtx)
      : engine_(std::move(engine)), path_(path), rtx_(rtx) {
    prepare_cache();
  }
  ~NvidiaEngine() override { save_cache(); }

  std::vector<EngineTensor> tensors() const override {
    std::vector<EngineTensor> made;
    for (std::int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
      const char* name = engine_->getIOTensorName(index);
      const char* aliased = engine_->getAliasedInputTensor(name);
      made.push_back({name, engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT,
                      engine_->getTensorLocation(name) == nvinfer1::TensorLocation::kDEVICE,
                      type_of(engine_->getTensorDataType(name)), shape_of(engine_->getTensorShape(name)),
                      aliased == nullptr ? "" : aliased});
    }
    return made;
  }
  int profiles() const override { return engine_->getNbOptimizationProfiles(); }
  Shapes profile_shapes(const std::string& input, int profile) const override {
    const auto shape = [&](nvinfer1::OptProfileSelector which) {
      return shape_of(engine_->getProfileShape(input.c_str(), profile, which));
    };
    return {shape(nvinfer1::OptProfileSelector::kMIN), shape(nvinfer1::OptProfileSelector::kOPT),
            shape(nvinfer1::OptProfileSelector::kMAX)};
  }
  std::size_t scratch_bytes() const override { return static_cast<std::size_t>(engine_->getDeviceMemorySizeV2()); }

#ifdef TRT_MAJOR_RTX
  // TensorRT RTX compiles kernels on the machine that runs them. A file beside the engine keeps them for the next
  // start; TensorRT refuses one from another GPU, driver or release, and it is replaced.
  void prepare_cache() {
    config_.reset(engine_->createRuntimeConfig());
    config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
    config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kDISABLED);  // the loop captures graphs itself
    // A kernel that is compiled in the background would miss the capture, and its slow substitute would stay.
    config_->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    cache_.reset(config_->createRuntimeCache());
    std::ifstream file(cache_path(), std::ios::binary);
    on_disk_.assign(std::istreambuf_iterator<char>(file), {});
    if (!on_disk_.empty()) cache_->deserialize(on_disk_.data(), on_disk_.size());
    config_->setRuntimeCache(*cache_);
  }

  void save_cache() const {
    const std::unique_ptr<nvinfer1::IHostMemory> made(cache_->serialize());
    if (!made || on_disk_ == std::string(static_cast<const char*>(made->data()), made->size())) return;
    const std::string temporary = cache_path() + "." + std::to_string(::getpid());
    std::ofstream file(temporary, std::ios::binary);
    file.write(static_cast<const char*>(made->data()), static_cast<std::streamsize>(made->size()));
    file.close();
    if (!file || std::rename(temporary.c_str(), cache_path().c_str()) != 0) std::remove(temporary.c_str());
  }

  std::unique_ptr<ExecutionContext> create_context() override {
    return wrapped(engine_->createExecutionContext(config_.get()));
  }

  std::string cache_path() const { return path_.substr(0, path_.rfind('.')) + ".runtime-cache"; }
#else
  void prepare_cache() {}
  void save_cache() const {}
  std::unique_ptr<ExecutionContext> create_context() override {
    if (rtx_)
      backend_error(path_ + ": only a library that was built with the headers of TensorRT RTX's SDK can run it");
    return wrapped(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  }
#endif

 private:
  static std::unique_ptr<ExecutionContext> wrapped(nvinfer1::IExecutionContext* made) {
    std::unique_ptr<nvinfer1::IExecutionContext> context(made);
    return context ? std::make_unique<NvidiaContext>(std::move(context)) : nullptr;
  }

  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::string path_;
  bool rtx_;
#ifdef TRT_MAJOR_RTX
  std::string on_disk_;
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
  std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
#endif
};

class NvidiaTensorrt : public Tensorrt {
 public:
  NvidiaTensorrt(void* library, const std::string& flavour) : rtx_(flavour == "tensorrt-rtx") {
    for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
      const std::string name = std::string("getInferLib") + part + "Version";
      version_ += (version_.empty() ? "" : ".") + std::to_string(function<int()>(library, name.c_str())());
    }
    const auto create = function<void*(void*, std::int32_t)>(library, "createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, NV_TENSORRT_VERSION)));
    if (!runtime_) backend_error(flavour + " " + version_ + " does not start (" + log_.take() + ")" + elsewhere);
  }

  std::string version() const override { return version_; }
  std::string last_error() const override { return log_.take(); }

  std::unique_ptr<Engine> deserialise(const std::string& path) override {
    const MappedFile content(path);
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime_->deserializeCudaEngine(content.data(), content.bytes()));
    return engine ? std::make_unique<NvidiaEngine>(std::move(engine), path, rtx_) : nullptr;
  }

 private:
  template <typename Signature>
  static Signature* function(void* library, const char* name) {
    void* found = ::dlsym(library, name);
    if (found == nullptr) backend_error(std::string("the library of TensorRT has no ") + name);
    return reinterpret_cast<Signature*>(found);
  }

  bool rtx_;
  mutable Log log_;
  std::string version_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace

std::unique_ptr<Gpu> open_gpu() { return std::make_unique<NvidiaGpu>(); }

std::unique_ptr<Tensorrt> load_tensorrt(const std::string& flavour, const std::string& library) {
  const bool rtx = flavour == "tensorrt-rtx";
#ifdef TRT_MAJOR_RTX
  const bool fits = rtx;
  const std::string usual = "libtensorrt_rtx.so." + std::to_string(TRT_MAJOR_RTX);
#else
  const bool fits = true;
  const std::string usual = rtx ? "libtensorrt_rtx.so.1" : "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
#endif
  if (!fits)
    backend_error("this library was built with the headers of TensorRT RTX, and cannot run engines of " + flavour);
  const char* named = std::getenv("STARFLOW_TENSORRT");
  std::string path = library.empty() && named != nullptr ? named : library;
  const std::string built_in = TENSORRT_LIBRARY;
  if (path.empty() && (built_in.find("_rtx") != std::string::npos) == rtx) path = built_in;
  if (path.empty()) path = usual;
  void* loaded = load_library(path);
  if (loaded == nullptr)
    backend_error(flavour + " cannot be loaded (" + ::dlerror() + "); name its library in STARFLOW_TENSORRT");
  return std::make_unique<NvidiaTensorrt>(loaded, flavour);
}

}  // namespace starflow
