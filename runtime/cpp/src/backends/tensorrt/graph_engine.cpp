#include "backends/tensorrt/graph_engine.hpp"

#include <algorithm>
#include <filesystem>

#include "plain/error.hpp"

namespace starflow {
namespace {

std::string shown(const std::string& value) { return value.empty() ? "none" : value; }
std::string shown(int value) { return std::to_string(value); }
std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}
std::string shown(const Shapes& shapes) { return shown(shapes[0]) + shown(shapes[1]) + shown(shapes[2]); }

std::vector<std::int64_t> fixed_shape(const TensorSpec& spec, std::int64_t count) {
  std::vector<std::int64_t> shape = spec.shape;
  std::replace(shape.begin(), shape.end(), tokens_of_run, count);
  return shape;
}

const char* type_name(Type type) {
  switch (type) {
    case Type::float32:
      return "float32";
    case Type::float16:
      return "float16";
    case Type::bfloat16:
      return "bfloat16";
    case Type::int64:
      return "int64";
    case Type::int8:
      return "int8";
  }
  return "";
}

}  // namespace

GraphEngine::GraphEngine(Gpu& gpu, Tensorrt& tensorrt, const Graph& graph, const BuildRecord& record,
                         const std::string& path, std::int64_t longest)
    : gpu_(gpu), tensorrt_(tensorrt), record_(record), graph_(graph), engine_(tensorrt.deserialise(path)) {
  if (!engine_) {
    std::error_code failed;
    const std::uintmax_t size = std::filesystem::file_size(path, failed);
    const auto [free, total] = gpu.memory();
    if (free < size)
      backend_error(path + ": needs at least " + std::to_string(size) + " bytes of GPU memory, " +
                    std::to_string(free) + " of " + std::to_string(total) + " are free; free some memory");
    bundle_error(path + ": " + record.flavour + " cannot load it (" + tensorrt.last_error() +
                 "); build again: " + record.command + " --force");
  }
  check(path, longest);
}

bool GraphEngine::takes_no_condition(const TensorSpec& spec) const {
  if (spec.role != "condition" || !spec.depends_on_run()) return false;
  const std::vector<std::int64_t> none = fixed_shape(spec, 0);
  return engine_->profile_shapes(spec.name, 0) == Shapes{none, none, none};
}

bool GraphEngine::steps_lack_condition() const {
  const auto lacks = [this](const TensorSpec& spec) { return takes_no_condition(spec); };
  return std::any_of(graph_.inputs.begin(), graph_.inputs.end(), lacks);
}

// Compares inputs, outputs and optimisation profiles with those of the graph.
void GraphEngine::check(const std::string& path, std::int64_t longest) const {
  const auto same = [&](const std::string& what, const auto& found, const auto& expected) {
    if (found != expected)
      bundle_error(path + ": " + what + " is " + shown(found) + ", the manifest says " + shown(expected) +
                   "; build again: " + record_.command + " --force");
  };
  const std::vector<EngineTensor> tensors = engine_->tensors();
  std::map<std::string, const EngineTensor*> found;
  for (const EngineTensor& tensor : tensors) found[tensor.name] = &tensor;
  same("the number of inputs and outputs", static_cast<int>(found.size()),
       static_cast<int>(graph_.inputs.size() + graph_.outputs.size()));
  same("the number of optimisation profiles", engine_->profiles(), static_cast<int>(record_.profiles.size()));
  for (const auto* specs : {&graph_.inputs, &graph_.outputs}) {
    const bool is_input = specs == &graph_.inputs;
    for (const TensorSpec& spec : *specs) {
      if (found.count(spec.name) == 0) same("tensor " + spec.name, std::string("missing"), std::string("there"));
      const EngineTensor& tensor = *found.at(spec.name);
      const auto direction = [](bool in) { return std::string(in ? "in" : "out"); };
      const auto location = [](bool device) { return std::string(device ? "the device" : "the host"); };
      std::string updates;
      for (const TensorSpec& input : graph_.inputs) updates = input.updated_by == spec.name ? input.name : updates;
      same(spec.name + "'s direction", direction(tensor.is_input), direction(is_input));
      same(spec.name + "'s location", location(tensor.on_device), location(true));
      same(spec.name + "'s type", tensor.type, std::string(type_name(spec.type)));
      same(spec.name + "'s shape", tensor.shape, spec.shape);
      same("the input that " + spec.name + " updates", tensor.updates, updates);
      for (int index = 0; is_input && spec.depends_on_run() && index < engine_->profiles(); ++index) {
        if (index == 0 && takes_no_condition(spec)) continue;
        const Profile& profile = record_.profiles[static_cast<std::size_t>(index)];
        const auto within = [&](std::int64_t count) { return fixed_shape(spec, std::min(count, longest)); };
        same("the range of " + spec.name + " in optimisation profile " + std::to_string(index),
             engine_->profile_shapes(spec.name, index),
             Shapes{within(profile.minimum), within(profile.optimum), within(profile.maximum)});
      }
    }
  }
}

void GraphEngine::assert_done(bool done, const std::string& what) const {
  if (done) return;
  const auto [free, total] = gpu_.memory();
  backend_error("flow block " + std::to_string(graph_.block) + ": TensorRT refuses " + what + " (" +
                tensorrt_.last_error() + "); " + std::to_string(free) + " of " + std::to_string(total) +
                " bytes of GPU memory are free");
}

CapturedRun GraphEngine::capture(std::int64_t count, bool conditioned, const GraphBuffers& buffers,
                                 const Scratch& scratch, void* stream, const std::function<void()>& feed_back) {
  CapturedRun run;
  int profile = record_.profile_for(count);
  if (profile == 0 && conditioned && steps_lack_condition()) profile = 1;
  run.context = engine_->create_context();
  assert_done(run.context != nullptr, "to create an execution context");
  assert_done(run.context->set_profile(profile, stream), "optimisation profile " + std::to_string(profile));
  for (const TensorSpec& spec : graph_.inputs) {
    const bool absent = profile == 0 && takes_no_condition(spec);
    if (spec.depends_on_run())
      assert_done(run.context->set_shape(spec.name, fixed_shape(spec, absent ? 0 : count)),
                  spec.name + " of " + std::to_string(count) + " tokens");
  }
  for (const auto* specs : {&graph_.inputs, &graph_.outputs}) {
    for (const TensorSpec& spec : *specs)
      assert_done(run.context->set_address(spec.name, buffers.address(spec.name)), "the address of " + spec.name);
  }
  run.context->set_scratch(scratch.memory.get(), scratch.bytes);
  // The first run compiles and allocates, which a capture must not. It writes where captured runs will write.
  const auto enqueue = [&] { assert_done(run.context->enqueue(stream), "to run"); };
  enqueue();
  gpu_.synchronize(stream);
  assert_done(run.context->is_capturable(stream), "to be captured into a CUDA graph");
  run.graph = gpu_.capture(stream, [&] {
    enqueue();
    feed_back();
  });
  return run;
}

}  // namespace starflow
