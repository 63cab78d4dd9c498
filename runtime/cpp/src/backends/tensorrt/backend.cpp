// TensorRT as a backend: the engines of one build for each batch size. Networks beside the flow run on ONNX Runtime.
#include <algorithm>

#include "backends/backend.hpp"
#include "backends/tensorrt/block_runner.hpp"
#include "backends/tensorrt/continuous_runner.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

// The build to run, and the TensorRT that runs it. Builds made with the installed release come first, then the order of
// variants in the manifest counts.
struct Build {
  BuildRecord record;
  std::unique_ptr<Tensorrt> tensorrt;
};

Build choose_build(const Bundle& bundle, const Manifest& manifest, const std::string& variant, const Gpu& gpu,
                   const std::string& library) {
  std::vector<std::string> order;
  for (const Variant& each : manifest.variants) {
    if (variant.empty() || variant == each.name) order.push_back(each.name);
  }
  const auto rank = [&](const std::string& name) {
    return std::find(order.begin(), order.end(), name) - order.begin();
  };
  Build best;
  std::ptrdiff_t best_rank = 0;
  std::string missing;
  for (BuildRecord& record : read_builds(bundle, manifest)) {
    const std::ptrdiff_t own = rank(record.variant), last = static_cast<std::ptrdiff_t>(order.size());
    if (own == last || !record.runs_on(gpu.compute_capability())) continue;
    try {
      std::unique_ptr<Tensorrt> loaded = load_tensorrt(record.flavour, library);
      const std::ptrdiff_t of_all = own + (loaded->version() == record.version ? 0 : last);
      if (!best.tensorrt || of_all < best_rank) {
        best = {std::move(record), std::move(loaded)};
        best_rank = of_all;
      }
    } catch (const Error& error) {
      missing = error.what();
    }
  }
  if (!best.tensorrt && !missing.empty()) backend_error(missing);
  if (!best.tensorrt)
    backend_error(bundle.root().string() + ": has no engines" + (variant.empty() ? "" : " of " + variant) +
                  " in batches of " + std::to_string(manifest.batch) + " for " + gpu.name() + ", compute capability " +
                  gpu.compute_capability() + "; build them: starflow build " + bundle.root().string() +
                  " --target tensorrt");
  if (best.record.version != best.tensorrt->version())
    bundle_error(bundle.root().string() + ": the engines of " + best.record.target() + " were built by " +
                 best.record.flavour + " " + best.record.version + " and load only there; " + best.tensorrt->version() +
                 " is installed; build again: " + best.record.command);
  return best;
}

// The engines of one batch size. Runs never overlap, so they share memory of the largest size. CUDA graphs keep its
// address: it must not grow later.
struct LoadedBuild {
  Build build;
  const Variant* variant = nullptr;
  std::map<int, std::unique_ptr<GraphEngine>> engines;  // by flow block
  Scratch scratch;
};

class TensorrtBackend : public Backend {
 public:
  TensorrtBackend(const Bundle& bundle, const std::vector<Manifest>& manifests, const std::string& variant,
                  const std::string& library, Warn warn, OpenBackend beside)
      : bundle_(bundle),
        manifests_(manifests),
        warn_(std::move(warn)),
        open_beside_(std::move(beside)),
        gpu_(open_gpu()) {
    for (const Manifest& manifest : manifests) {  // refused now, and not once images need it
      loaded_.emplace_back();
      loaded_.back().build =
          choose_build(bundle, manifest, loaded_.size() == 1 ? variant : loaded_[0].build.record.variant, *gpu_, library);
    }
    gpu_->select();
    stream_ = gpu_->create_stream();
    loaded(manifests[0]);
  }

  ~TensorrtBackend() override { gpu_->drain(stream_.get()); }

  std::string name() const override { return "tensorrt"; }
  std::string release() const override { return loaded_[0].build.tensorrt->version(); }
  const char* lowering() const override { return "portable"; }
  std::string variant() const override { return loaded_[0].build.record.variant; }
  void check(const Variant&) const override {}

  std::unique_ptr<BlockRunner> open_block(const Graph& graph, const Block& block, const Manifest& manifest) override {
    LoadedBuild& own = loaded(manifest);
    return std::make_unique<TensorrtBlockRunner>(*own.engines.at(graph.block), block, manifest, own.scratch,
                                                 Queue{*gpu_, stream_.get()});
  }

  std::unique_ptr<ContinuousRunner> open_continuous(const Graph& graph, const Manifest& manifest) override {
    LoadedBuild& own = loaded(manifest);
    return std::make_unique<TensorrtContinuousRunner>(*own.engines.at(graph.block), own.scratch,
                                                      Queue{*gpu_, stream_.get()});
  }

  std::vector<float> run_network(const Network& network, const NetworkInputs& inputs) override {
    if (!beside_) beside_ = open_beside_();
    return beside_->run_network(network, inputs);
  }

 private:
  LoadedBuild& loaded(const Manifest& manifest) {
    LoadedBuild& own = loaded_[static_cast<std::size_t>(&manifest - manifests_.data())];
    gpu_->select();
    if (own.variant != nullptr) return own;
    const BuildRecord& record = own.build.record;
    const auto variant = std::find_if(manifest.variants.begin(), manifest.variants.end(),
                                      [&](const Variant& each) { return each.name == record.variant; });
    for (const Graph& graph : variant->graphs) {
      const auto file = std::find_if(record.engines.begin(), record.engines.end(),
                                     [&](const EngineFile& each) { return each.block == graph.block; });
      if (file == record.engines.end())
        bundle_error(bundle_.root().string() + ": build " + record.target() + " of " + record.variant +
                     " has no engine for flow block " + std::to_string(graph.block) +
                     "; build again: " + record.command + " --force");
      const std::string path = check_engine_file(bundle_, *variant, record, *file);
      std::int64_t longest = 1;
      if (!manifest.is_continuous())
        longest = std::min(manifest.max_chunk, manifest.blocks[static_cast<std::size_t>(graph.block)].capacity);
      auto engine = std::make_unique<GraphEngine>(*gpu_, *own.build.tensorrt, graph, record, path, longest, warn_);
      own.scratch.bytes = std::max(own.scratch.bytes, engine->scratch_bytes());
      own.engines[graph.block] = std::move(engine);
    }
    own.scratch.bytes = std::max<std::size_t>(own.scratch.bytes, 1);
    own.scratch.memory = allocate(*gpu_, own.scratch.bytes, "the engines' scratch memory");
    own.variant = &*variant;
    return own;
  }

  const Bundle& bundle_;
  const std::vector<Manifest>& manifests_;
  Warn warn_;
  OpenBackend open_beside_;
  std::unique_ptr<Backend> beside_;
  std::unique_ptr<Gpu> gpu_;
  Held stream_;
  std::vector<LoadedBuild> loaded_;  // for each manifest
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const std::vector<Manifest>& manifests,
                                       const std::string& variant, const std::string& library, Warn warn,
                                       OpenBackend beside) {
  return std::make_unique<TensorrtBackend>(bundle, manifests, variant, library, std::move(warn), std::move(beside));
}

}  // namespace starflow
