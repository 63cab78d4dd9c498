// ONNX Runtime's library, loaded at run time: one program works with every release whose API is as new as the headers.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_c_api.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace starflow {

// A failure that ONNX Runtime reports: the first line of what it says.
struct OnnxRuntimeFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class OnnxRuntime {
 public:
  // The library of a path or a name; empty takes the variable STARFLOW_ONNXRUNTIME, the library that this one was built
  // with, or `libonnxruntime.so.1`. It stays loaded until the process ends.
  static const OnnxRuntime& load(const std::string& library);

  const OrtApi& api() const { return *api_; }
  const OrtEnv* environment() const { return environment_; }
  const std::string& release() const { return release_; }
  int minor() const { return minor_; }  // 27 of 1.27.0

  // Throws OnnxRuntimeFailure for a status that is not null.
  void check(OrtStatus* status) const;

 private:
  explicit OnnxRuntime(const std::string& library);

  const OrtApi* api_ = nullptr;
  OrtEnv* environment_ = nullptr;
  std::string release_;
  int minor_ = 0;
};

// An object of ONNX Runtime's C API, released with its owner.
template <typename Type>
using Handle = std::unique_ptr<Type, void(ORT_API_CALL*)(Type*)>;

}  // namespace starflow
