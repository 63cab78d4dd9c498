// ONNX Runtime as a backend: sessions for the graphs of one variant, and for the networks beside the flow.
#include "backends/backend.hpp"

#include <sched.h>

#include <cstring>
#include <limits>

#include "backends/onnxruntime/block_runner.hpp"
#include "backends/onnxruntime/continuous_runner.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr int oldest = 25;              // the first release with every operator of the graphs (opset 24)
constexpr int oldest_byte_caches = 27;  // before it, GroupQueryAttention takes no caches of 8 bits
constexpr int most_threads = 1024;
constexpr int rounds = 5;                         // of the measurement of threads

class OnnxRuntimeBackend : public Backend {
 public:
  OnnxRuntimeBackend(const Bundle& bundle, const std::string& provider, int threads, const std::string& library)
      : bundle_(bundle),
        library_(OnnxRuntime::load(library)),
        provider_(choose_provider(library_, provider)),
        threads_(threads) {
    if (provider_.has_own_memory()) device_ = std::make_unique<DeviceMemory>(library_, provider_);
  }

  std::string name() const override { return "onnxruntime " + provider_.name; }
  std::string release() const override { return library_.release(); }
  const char* lowering() const override { return device_ ? "portable" : "cpu"; }

  void check(const Variant& variant) const override {
    if (variant.lowering == "cuda")
      usage_error("variant " + variant.name + " runs from Python only; take a portable variant, or a cpu one on the CPU");
    if (device_ && variant.lowering != "portable")
      usage_error("variant " + variant.name + " runs on the CPU only; provider " + provider_.name +
                  " needs a portable variant");
    int least = oldest;
    for (const Graph& graph : variant.graphs) {
      for (const TensorSpec& spec : graph.inputs) {
        if (spec.role == "cache" && spec.type == Type::int8) least = oldest_byte_caches;
      }
    }
    if (library_.minor() < least) {
      backend_error("variant " + variant.name + " needs ONNX Runtime 1." + std::to_string(least) +
                    " or newer, this is " + library_.release() + "; install a newer one");
    }
  }

  std::unique_ptr<BlockRunner> open_block(const Graph& graph, const Block& block, const Manifest& manifest) override {
    const int cores = available_cores();
    const auto open = [&](int threads) {
      return std::make_unique<OnnxRuntimeBlockRunner>(
          session(graph.file, weights_of(graph, manifest), graph.inputs, graph.outputs, threads, graph.weight_bytes),
          graph, block, manifest);
    };
    if (threads_ > 0 || device_) return open(threads_);
    if (graph.weight_bytes > large_weights || cores == 1) return open(cores);  // one thread was never faster above it
    // The two take turns, so that a disturbance affects both, and the best round of each counts.
    auto single = open(1), all = open(cores);
    double best_single = std::numeric_limits<double>::infinity(), best_all = best_single;
    for (int round = 0; round < rounds; ++round) {
      best_single = std::min(best_single, single->seconds_of_steps());
      best_all = std::min(best_all, all->seconds_of_steps());
    }
    return best_all < best_single ? std::move(all) : std::move(single);
  }

  std::unique_ptr<ContinuousRunner> open_continuous(const Graph& graph, const Manifest& manifest) override {
    return std::make_unique<OnnxRuntimeContinuousRunner>(
        session(graph.file, weights_of(graph, manifest), graph.inputs, graph.outputs, threads_, graph.weight_bytes),
        graph);
  }

  std::vector<float> run_network(const Network& network, const NetworkInputs& inputs) override {
    std::unique_ptr<Session>& opened = networks_[network.file.path];
    if (!opened)
      opened = session(network.file, network.weights, network.inputs, network.outputs, threads_, network.weights.bytes);
    const TensorSpec& made = network.outputs.at(0);
    std::vector<float> output(static_cast<std::size_t>(made.values(1)));
    std::map<std::string, Memory> memory;  // on the host: a binding moves what a device needs
    for (const TensorSpec& spec : network.inputs) {
      const Memory& input = memory.emplace(spec.name, Memory(spec, 1)).first->second;
      std::memcpy(input.data(), inputs.at(spec.name), input.bytes());
    }
    memory.emplace(made.name, Memory(made, 1));
    const auto place = [&](const TensorSpec& spec) { return &memory.at(spec.name); };
    opened->run(opened->bind(1, place, place));
    std::memcpy(output.data(), memory.at(made.name).data(), memory.at(made.name).bytes());
    return output;
  }

 private:
  static int available_cores() {
    cpu_set_t set;
    return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  }

  static const File& weights_of(const Graph& graph, const Manifest& manifest) {
    for (const Variant& variant : manifest.variants) {
      for (const Graph& each : variant.graphs) {
        if (&each == &graph) return variant.weights;
      }
    }
    return graph.file;
  }

  std::unique_ptr<Session> session(const File& graph, const File& weights, const std::vector<TensorSpec>& inputs,
                                   const std::vector<TensorSpec>& outputs, int threads, std::int64_t weight_bytes) {
    return std::make_unique<Session>(library_, bundle_, graph, weights, inputs, outputs, provider_, threads,
                                     weight_bytes, device_.get());
  }

  const Bundle& bundle_;
  const OnnxRuntime& library_;
  Provider provider_;
  std::unique_ptr<DeviceMemory> device_;  // of a provider that has its own memory
  int threads_;
  std::map<std::string, std::unique_ptr<Session>> networks_;  // by the path of their graph
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const std::string& provider, int threads,
                                          const std::string& library) {
  if (threads < 0 || threads > most_threads)
    usage_error(std::to_string(threads) + " threads: give a number from 0 to " + std::to_string(most_threads));
  return std::make_unique<OnnxRuntimeBackend>(bundle, provider, threads, library);
}

}  // namespace starflow
