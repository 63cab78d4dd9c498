// What stands for `nvidia.cpp` in a library that is built without TensorRT.
#include "backends/tensorrt/device.hpp"
#include "plain/error.hpp"

namespace starflow {

const bool has_tensorrt = false;

std::unique_ptr<Gpu> open_gpu() {
  backend_error("this library was built without TensorRT; build it with -DSTARFLOW_TENSORRT=ON");
}

std::unique_ptr<Tensorrt> load_tensorrt(const std::string& flavour, const std::string&) {
  backend_error("this library was built without " + flavour + "; build it with -DSTARFLOW_TENSORRT=ON");
}

}  // namespace starflow
