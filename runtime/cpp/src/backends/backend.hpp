// The interface of a backend: a device, and for each family of flows a runner of its graphs.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/block_runner.hpp"
#include "backends/continuous_runner.hpp"
#include "bundle/bundle.hpp"

namespace starflow {

// The values of a tensor by its input's name.
using NetworkInputs = std::map<std::string, const void*>;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;      // in stored plans, such as `onnxruntime cpu`
  virtual std::string release() const = 0;   // of the engine
  virtual const char* lowering() const = 0;  // of the variants that are made for it
  // Runners keep references to what they are given.
  virtual std::unique_ptr<BlockRunner> open_block(const Graph& graph, const Block& block, const Manifest& manifest) = 0;
  virtual std::unique_ptr<ContinuousRunner> open_continuous(const Graph& graph, const Manifest& manifest) = 0;
  // The output of a network beside the flow, for one batch.
  virtual std::vector<float> run_network(const Network& network, const NetworkInputs& inputs) = 0;
  virtual void check(const Variant& variant) const = 0;  // whether it can run a variant
};

// ONNX Runtime, loaded from `library` or from where it is usually found.
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const std::string& provider, int threads,
                                          const std::string& library);

}  // namespace starflow
