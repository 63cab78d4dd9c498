// The interface of a backend: a device, and for each family of flows a runner of its graphs.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/block_runner.hpp"
#include "backends/continuous_runner.hpp"
#include "bundle/bundle.hpp"
#include "starflow/starflow.hpp"

namespace starflow {

// The values of a tensor by its input's name.
using NetworkInputs = std::map<std::string, const void*>;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;               // in stored plans, such as `onnxruntime cpu`
  virtual std::string release() const = 0;            // of the engine
  virtual const char* lowering() const = 0;           // of the variants that are made for it
  virtual std::string variant() const { return ""; }  // the only one that it runs; empty if it can run others
  // Runners keep references to what they are given.
  virtual std::unique_ptr<BlockRunner> open_block(const Graph& graph, const Block& block, const Manifest& manifest) = 0;
  virtual std::unique_ptr<ContinuousRunner> open_continuous(const Graph& graph, const Manifest& manifest) = 0;
  // The output of a network beside the flow, for one batch.
  virtual std::vector<float> run_network(const Network& network, const NetworkInputs& inputs) = 0;
  virtual void check(const Variant& variant) const = 0;  // whether it can run a variant
};

// Is told, in one line, what works less well than it should.
using Warn = std::function<void(const std::string& message)>;

using OpenBackend = std::function<std::unique_ptr<Backend>()>;

// The backend that options ask for. All that is given must outlive it; `manifests` is a shape at each batch size.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const std::vector<Manifest>& manifests,
                                      const Options& options);

// ONNX Runtime, loaded from `library` or from where it is usually found.
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const std::string& provider, int threads,
                                          const std::string& library);

// The engines of a bundle on the GPU of this machine, of `variant` or of any. `beside` opens the backend of networks
// beside the flow when one is first run.
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const std::vector<Manifest>& manifests,
                                       const std::string& variant, const std::string& library, Warn warn,
                                       OpenBackend beside);

}  // namespace starflow
