#include "backends/tensorrt/graph_engine.hpp"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "plain/error.hpp"

namespace starflow {
namespace {

// Loading and capturing take turns in a process: what one thread allocates would spoil what another one captures.
std::mutex loading;

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

void CapturedRuns::launch(const Queue& queue, int times) const {
  for (int done = 0; done < times; ++done) {
    if (graph)
      queue.gpu.launch(graph.get(), queue.stream);
    else
      work();
  }
}

GraphEngine::GraphEngine(Gpu& gpu, Tensorrt& tensorrt, const Graph& graph, const BuildRecord& record,
                         const std::string& path, std::int64_t longest, Warn warn)
    : gpu_(gpu), tensorrt_(tensorrt), record_(record), graph_(graph), warn_(std::move(warn)) {
  const std::lock_guard<std::mutex> lock(loading);
  engine_ = tensorrt.deserialise(path);
  if (!engine_) {
    const std::string said = tensorrt.last_error();  // before another call has something to say
    std::error_code failed;
    const std::uintmax_t size = std::filesystem::file_size(path, failed);
    const auto [free, total] = gpu.memory();
    if (free < size)
      backend_error(path + ": needs at least " + std::to_string(size) + " bytes of GPU memory, " +
                    std::to_string(free) + " of " + std::to_string(total) + " are free; free some memory");
    bundle_error(path + ": " + record.flavour + " cannot load it (" + said +
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
  const std::string said = tensorrt_.last_error();  // before another call has something to say
  const auto [free, total] = gpu_.memory();
  backend_error("flow block " + std::to_string(graph_.block) + ": TensorRT refuses " + what + " (" +
                said + "); " + std::to_string(free) + " of " + std::to_string(total) +
                " bytes of GPU memory are free");
}

std::unique_ptr<ExecutionContext> GraphEngine::context(std::int64_t count, bool conditioned,
                                                       const Addresses& addresses, const Scratch& scratch,
                                                       void* stream) {
  int profile = record_.profile_for(count);
  if (profile == 0 && conditioned && steps_lack_condition()) profile = 1;
  std::unique_ptr<ExecutionContext> made = engine_->create_context();
  assert_done(made != nullptr, "to create an execution context");
  assert_done(made->set_profile(profile, stream), "optimisation profile " + std::to_string(profile));
  for (const TensorSpec& spec : graph_.inputs) {
    const bool absent = profile == 0 && takes_no_condition(spec);
    if (spec.depends_on_run())
      assert_done(made->set_shape(spec.name, fixed_shape(spec, absent ? 0 : count)),
                  spec.name + " of " + std::to_string(count) + " tokens");
  }
  for (const auto& [name, address] : addresses)
    assert_done(made->set_address(name, address), "the address of " + name);
  made->set_scratch(scratch.memory.get(), scratch.bytes);
  return made;
}

CapturedRuns GraphEngine::capture(std::int64_t count, bool conditioned, const std::vector<Addresses>& runs_at,
                                  const Scratch& scratch, void* stream, const std::function<void()>& feed_back) {
  const std::lock_guard<std::mutex> lock(loading);
  CapturedRuns runs;
  std::vector<ExecutionContext*> contexts;
  for (const Addresses& addresses : runs_at) {
    runs.contexts.push_back(context(count, conditioned, addresses, scratch, stream));
    contexts.push_back(runs.contexts.back().get());
  }
  runs.work = [this, contexts, stream, feed_back] {
    for (ExecutionContext* each : contexts) assert_done(each->enqueue(stream), "to run");
    feed_back();
  };
  // The first run of a context compiles and allocates, which a capture must not. It writes where captured runs will
  // write.
  for (ExecutionContext* each : contexts) assert_done(each->enqueue(stream), "to run");
  gpu_.synchronize(stream);
  try {
    for (ExecutionContext* each : contexts) {
      if (!each->is_capturable(stream)) throw CaptureRefused("TensorRT calls the stream not capturable");
    }
    runs.graph = gpu_.capture(stream, [&] {
      for (ExecutionContext* each : contexts) {
        if (!each->enqueue(stream)) throw CaptureRefused(tensorrt_.last_error());
      }
      feed_back();
    });
  } catch (const CaptureRefused& refusal) {
    warn_("flow block " + std::to_string(graph_.block) + ": runs of " + std::to_string(count) +
          " tokens cannot be captured into a CUDA graph (" + refusal.what() +
          "); each is enqueued anew, which gives the same results and asks more of the host");
  }
  return runs;
}

}  // namespace starflow
