// Loads an engine with the real TensorRT and prints what that says: "loaded", or why it refuses.
#include <cstdio>

#include "backends/tensorrt/device.hpp"
#include "starflow/starflow.hpp"

int main(int, char** arguments) {
  try {
    const auto tensorrt = starflow::load_tensorrt(arguments[1], arguments[2]);
    const bool loaded = tensorrt->deserialise(arguments[3]) != nullptr;
    std::printf("%s: %s\n", tensorrt->version().c_str(), loaded ? "loaded" : tensorrt->last_error().c_str());
    return 0;
  } catch (const starflow::Error& error) {
    std::printf("%s\n", error.what());
    return static_cast<int>(error.kind());
  }
}
