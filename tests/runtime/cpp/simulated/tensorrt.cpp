// A TensorRT on the simulated GPU. An "engine" is a JSON file that names a graph, which runs on ONNX Runtime's CPU, and
// says what the engine claims of itself: tensors, profiles, aliases, scratch memory.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "backends/onnxruntime/library.hpp"
#include "gpu.hpp"
#include "plain/error.hpp"

namespace simulated {
namespace {

using starflow::EngineTensor;
using starflow::Handle;
using starflow::OnnxRuntime;
using starflow::Shapes;
using Json = nlohmann::json;
using Lock = std::lock_guard<std::recursive_mutex>;

constexpr unsigned char poison = 0xFF;

const std::map<std::string, std::pair<ONNXTensorElementDataType, std::size_t>> types{
    {"float32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}},
    {"float16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}},
    {"int64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}}};

struct Known {
  std::vector<EngineTensor> tensors;
  std::vector<std::map<std::string, Shapes>> profiles;  // by input
  std::size_t scratch = 0;
  const OnnxRuntime* library = nullptr;
  std::shared_ptr<OrtSession> session;

  // Runs the graph on tensors in the host's memory.
  void run(const std::map<std::string, Region>& regions,
           const std::map<std::string, std::vector<std::int64_t>>& shapes) {
    const OrtApi& api = library->api();
    try {
      OrtMemoryInfo* info = nullptr;
      library->check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
      const Handle<OrtMemoryInfo> host(info, api.ReleaseMemoryInfo);
      OrtIoBinding* made = nullptr;
      library->check(api.CreateIoBinding(session.get(), &made));
      const Handle<OrtIoBinding> binding(made, api.ReleaseIoBinding);
      for (const EngineTensor& tensor : tensors) {
        const std::vector<std::int64_t>& shape = shapes.at(tensor.name);
        const Region& region = regions.at(tensor.name);
        OrtValue* value = nullptr;
        library->check(api.CreateTensorWithDataAsOrtValue(info, region.data(), region.bytes, shape.data(), shape.size(),
                                                          types.at(tensor.type).first, &value));
        const Handle<OrtValue> owned(value, api.ReleaseValue);
        library->check((tensor.is_input ? api.BindInput : api.BindOutput)(made, tensor.name.c_str(), value));
      }
      library->check(api.RunWithBinding(session.get(), nullptr, made));
    } catch (const starflow::OnnxRuntimeFailure& failure) {
      throw std::logic_error(std::string("the graph does not run: ") + failure.what());
    }
  }
};

class Context : public starflow::ExecutionContext {
 public:
  explicit Context(std::shared_ptr<Known> known) : known_(std::move(known)) {}

  bool set_profile(int profile, void*) override {
    Machine::get().check_not_capturing("set_profile");
    profile_ = profile < static_cast<int>(known_->profiles.size()) ? profile : -1;
    shapes_.clear();
    return profile_ >= 0;
  }

  bool set_shape(const std::string& name, const std::vector<std::int64_t>& shape) override {
    if (profile_ < 0) Machine::violation("set_shape before a profile is chosen");
    const Shapes& range = known_->profiles[static_cast<std::size_t>(profile_)].at(name);
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] < range[0].at(axis) || shape[axis] > range[2].at(axis)) return false;
    }
    shapes_[name] = shape;
    return true;
  }

  bool set_address(const std::string& name, void* device) override {
    addresses_[name] = device;
    return true;
  }

  void set_scratch(void* device, std::size_t bytes) override {
    if (bytes < known_->scratch) Machine::violation("set_scratch: too few bytes");
    scratch_ = Machine::get().region(device, bytes, false, "set_scratch");
  }

  bool is_capturable(void*) override { return compiled_; }

  bool enqueue(void* stream) override {
    Machine& machine = Machine::get();
    const Lock lock(machine.mutex);
    if (!compiled_ && machine.is_capturing(stream))
      Machine::violation("the first run of a context, which compiles and allocates, is captured");
    compiled_ = true;
    if (machine.is_capturing(stream) && setting("SIMULATED_REFUSES", "") == "run") return false;
    if (!scratch_.allocation) Machine::violation("enqueue before scratch memory is set");
    ++machine.counts["enqueue"];
    std::map<std::string, Region> regions;
    std::map<std::string, std::vector<std::int64_t>> shapes;
    std::vector<Region> used{scratch_};
    for (const EngineTensor& tensor : known_->tensors) {
      shapes[tensor.name] = shape_of(tensor);
      std::size_t bytes = types.at(tensor.type).second;
      for (const std::int64_t size : shapes[tensor.name]) bytes *= static_cast<std::size_t>(size);
      if (addresses_.count(tensor.name) == 0) Machine::violation(tensor.name + " has no address");
      regions[tensor.name] = machine.region(addresses_[tensor.name], bytes, false, tensor.name);
      used.push_back(regions[tensor.name]);
    }
    check_apart(regions);
    machine.enqueue(stream, {"a run", [this, regions, shapes] { run(regions, shapes); }, used, {alive_}});
    return true;
  }

 private:
  std::vector<std::int64_t> shape_of(const EngineTensor& tensor) const {
    if (shapes_.count(tensor.name) > 0) return shapes_.at(tensor.name);
    std::vector<std::int64_t> shape = tensor.shape;
    for (std::int64_t& size : shape) {
      if (size < 0 && shapes_.empty()) Machine::violation("enqueue before the shapes of inputs are set");
      if (size < 0) size = shapes_.count("previous") > 0 ? shapes_.at("previous").at(1) : 1;  // [batch, tokens, width]
    }
    return shape;
  }

  void check_apart(const std::map<std::string, Region>& regions) const {
    for (const EngineTensor& output : known_->tensors) {
      if (output.is_input) continue;
      if (!output.updates.empty() && addresses_.at(output.name) != addresses_.at(output.updates))
        Machine::violation(output.name + " and " + output.updates + " are one cache and have two addresses");
      for (const auto& [name, region] : regions) {
        if (name != output.name && name != output.updates && region.overlaps(regions.at(output.name)))
          Machine::violation("output " + output.name + " overlaps " + name);
      }
    }
  }

  void run(const std::map<std::string, Region>& regions,
           const std::map<std::string, std::vector<std::int64_t>>& shapes) const {
    for (const EngineTensor& tensor : known_->tensors) {
      if (tensor.is_input) regions.at(tensor.name).check_written("input " + tensor.name);
    }
    known_->run(regions, shapes);
    for (const EngineTensor& tensor : known_->tensors) {
      if (!tensor.is_input) regions.at(tensor.name).mark_written();
    }
    std::memset(scratch_.data(), poison, scratch_.bytes);
  }

  std::shared_ptr<Known> known_;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  int profile_ = -1;
  bool compiled_ = false;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  std::map<std::string, void*> addresses_;
  Region scratch_;
};

class SimulatedEngine : public starflow::Engine {
 public:
  explicit SimulatedEngine(std::shared_ptr<Known> known) : known_(std::move(known)) {}

  std::vector<EngineTensor> tensors() const override { return known_->tensors; }
  int profiles() const override { return static_cast<int>(known_->profiles.size()); }
  Shapes profile_shapes(const std::string& input, int profile) const override {
    return known_->profiles.at(static_cast<std::size_t>(profile)).at(input);
  }
  std::size_t scratch_bytes() const override { return known_->scratch; }
  std::unique_ptr<starflow::ExecutionContext> create_context() override {
    Machine::get().check_not_capturing("create_context");
    return std::make_unique<Context>(known_);
  }

 private:
  std::shared_ptr<Known> known_;
};

class SimulatedTensorrt : public starflow::Tensorrt {
 public:
  std::string version() const override { return setting("SIMULATED_VERSION", "1.0"); }
  std::string last_error() const override { return error_; }

  std::unique_ptr<starflow::Engine> deserialise(const std::string& path) override {
    std::ifstream file(path);
    const Json content = Json::parse(file, nullptr, false);
    if (content.is_discarded()) {
      error_ = "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed";
      return nullptr;
    }
    auto known = std::make_shared<Known>();
    for (const Json& tensor : content.at("tensors"))
      known->tensors.push_back({tensor.at("name"), tensor.at("input"), tensor.at("device"), tensor.at("type"),
                                tensor.at("shape"), tensor.at("updates")});
    for (const Json& profile : content.at("profiles")) known->profiles.push_back(profile);
    known->scratch = content.at("scratch");
    load(*known, content.at("graph"));
    return std::make_unique<SimulatedEngine>(known);
  }

 private:
  static void load(Known& known, const std::string& graph) {
    known.library = &OnnxRuntime::load("");
    const OrtApi& api = known.library->api();
    OrtSessionOptions* options = nullptr;
    known.library->check(api.CreateSessionOptions(&options));
    const Handle<OrtSessionOptions> owned(options, api.ReleaseSessionOptions);
    known.library->check(api.SetIntraOpNumThreads(options, 1));
    known.library->check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
    OrtSession* session = nullptr;
    known.library->check(api.CreateSession(known.library->environment(), graph.c_str(), options, &session));
    known.session = {session, api.ReleaseSession};
  }

  std::string error_ = "no reason given";
};

}  // namespace
}  // namespace simulated

namespace starflow {

std::unique_ptr<Tensorrt> load_tensorrt(const std::string& flavour, const std::string&) {
  if (flavour == simulated::setting("SIMULATED_MISSING", ""))
    backend_error(flavour + " cannot be loaded; name its library in STARFLOW_TENSORRT");
  return std::make_unique<simulated::SimulatedTensorrt>();
}

}  // namespace starflow
