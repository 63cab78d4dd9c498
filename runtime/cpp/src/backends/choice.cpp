// Which backend runs a bundle.
#include <cstdio>

#include "backends/backend.hpp"
#include "backends/tensorrt/device.hpp"
#include "bundle/build_record.hpp"
#include "plain/error.hpp"

namespace starflow {

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const std::vector<Manifest>& manifests,
                                      const Options& options) {
  const OpenBackend onnxruntime = [&bundle, provider = options.provider, threads = options.threads,
                                   library = options.onnxruntime] {
    return open_onnxruntime(bundle, provider, threads, library);
  };
  const auto tensorrt = [&] {
    const auto print = [](const std::string& message) { std::fprintf(stderr, "starflow: %s\n", message.c_str()); };
    const Warn warn = options.warn ? options.warn : print;
    return open_tensorrt(bundle, manifests, options.variant, options.tensorrt, warn, onnxruntime);
  };
  if (options.backend == "tensorrt") {
    if (options.provider != "cpu")
      usage_error("provider " + options.provider + " is for ONNX Runtime; leave it out with the tensorrt backend");
    return tensorrt();
  }
  if (options.backend == "auto" && options.provider == "cpu" && has_tensorrt &&
      !read_builds(bundle, manifests[0]).empty()) {
    try {
      return tensorrt();
    } catch (const Error& error) {  // without a GPU, or an engine for it, `auto` runs what works here
      if (error.kind() != ErrorKind::backend) throw;
    }
  }
  if (options.backend != "auto" && options.backend != "onnxruntime")
    usage_error("backend " + options.backend + " is not known; choose auto, onnxruntime or tensorrt");
  return onnxruntime();
}

}  // namespace starflow
